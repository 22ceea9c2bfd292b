package staged_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/dir"
	"github.com/headstart-serving/headstart/stager/staged"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const repo = "acme/tuned"

func files() map[string][]byte {
	return map[string][]byte{"config.json": []byte("{}"), "model.safetensors": stagertest.Safetensors(700_001), "model.gguf": []byte("GGUF"), "empty.txt": nil}
}

// source is a bucket in which a model is staged, with a selection and a division of its own.
func source(t *testing.T) (*stagertest.Bucket, stager.Result) {
	t.Helper()
	root, bucket := t.TempDir(), stagertest.NewBucket(t)
	for p, data := range files() {
		if err := os.WriteFile(filepath.Join(root, p), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := stager.New(stager.Config{Source: dir.New(root), Store: bucket.Store(nil), ChunkSize: 128 << 10, Select: stager.Selection{Include: []string{"*.gguf"}}}).Stage(t.Context(), manifest.Reference{Repo: repo})
	if err != nil {
		t.Fatal(err)
	}
	return bucket, r
}

func stage(t *testing.T, from, to *stagertest.Bucket, revision string) (stager.Result, error) {
	t.Helper()
	return stager.New(stager.Config{Source: staged.New(from.Store(nil)), Store: to.Store(nil), ChunkSize: 64 << 10}).Stage(t.Context(), manifest.Reference{Repo: repo, Revision: revision})
}

// TestSameManifest copies a model: the buckets are the same byte for byte.
func TestSameManifest(t *testing.T) {
	from, first := source(t)
	for _, revision := range []string{"", "main", first.Manifest.Model.Commit} {
		to := stagertest.NewBucket(t)
		r, err := stage(t, from, to, revision)
		if err != nil || r.Sum != first.Sum || r.Already || r.Fetched != first.Manifest.Size() {
			t.Fatalf("%+v, %v", r, err)
		}
		want := from.Contents()
		if revision == first.Manifest.Model.Commit {
			delete(want, manifest.RefKey(repo, "main"))
		}
		if !maps.Equal(want, to.Contents()) {
			t.Errorf("%q: the buckets differ", revision)
		}
		if again, err := stage(t, from, to, revision); err != nil || !again.Already || again.Sum != first.Sum {
			t.Errorf("again: %+v, %v", again, err)
		}
		to.Remove(first.Manifest.Model.Object("config.json"))
		if mended, err := stage(t, from, to, revision); err != nil || mended.Already || mended.Fetched != 2 {
			t.Errorf("mended: %+v, %v", mended, err)
		}
	}
}

// TestCrashes stops a copy at every write. The next run ends in the same bucket.
func TestCrashes(t *testing.T) {
	from, _ := source(t)
	for n := 0; ; n++ {
		to := stagertest.NewBucket(t)
		crashed := false
		store := to.Store(func(i int, _ string) stagertest.Fault {
			if i != n {
				return stagertest.None
			}
			crashed = true
			return stagertest.DeadAfter
		})
		_, err := stager.New(stager.Config{Source: staged.New(from.Store(nil)), Store: store}).Stage(t.Context(), manifest.Reference{Repo: repo})
		if !crashed {
			if err != nil || n < 8 {
				t.Errorf("%d writes, %v", n, err)
			}
			return
		}
		if _, err := stage(t, from, to, ""); err != nil || !maps.Equal(from.Contents(), to.Contents()) {
			t.Errorf("write %d: %v", n, err)
		}
	}
}

// TestRefusals spoils the source, or has something else in the target.
func TestRefusals(t *testing.T) {
	model := func(b *stagertest.Bucket) manifest.Model {
		return manifest.Model{Repo: repo, Commit: b.Contents()[manifest.RefKey(repo, "main")]}
	}
	altered := files()["model.safetensors"]
	altered[500_000] ^= 1
	for name, test := range map[string]struct {
		spoil    func(from, to *stagertest.Bucket)
		revision string
		class    error
		text     string
	}{
		"no ref":      {nil, "v9", fs.ErrNotExist, `acme/tuned has no revision "v9" in mem://bucket: see headstart ls acme/tuned`},
		"no commit":   {nil, strings.Repeat("0", 40), fs.ErrNotExist, "acme/tuned has no commit 000"},
		"no such ref": {nil, "..", manifest.ErrInvalid, ".."},
		"a ref of words": {func(from, _ *stagertest.Bucket) {
			from.Replace(manifest.RefKey(repo, "main"), []byte("../../etc/passwd"))
		}, "", manifest.ErrInvalid, "names no commit"},
		"a long ref":     {func(from, _ *stagertest.Bucket) { from.Replace(manifest.RefKey(repo, "main"), make([]byte, 100)) }, "", nil, "more than 64 bytes"},
		"no manifest":    {func(from, _ *stagertest.Bucket) { from.Remove(model(from).Key()) }, "", fs.ErrNotExist, "has no commit"},
		"not a manifest": {func(from, _ *stagertest.Bucket) { from.Replace(model(from).Key(), []byte("{}")) }, "", manifest.ErrInvalid, "parsing a manifest"},
		"another's": {func(from, _ *stagertest.Bucket) {
			m := model(from)
			from.Replace(manifest.Model{Repo: repo, Commit: strings.Repeat("1", 40)}.Key(), []byte(from.Contents()[m.Key()]))
		}, strings.Repeat("1", 40), manifest.ErrInvalid, "is the manifest of acme/tuned@"},
		"altered": {func(from, _ *stagertest.Bucket) { from.Replace(model(from).Object("model.safetensors"), altered) }, "", nil, "model.safetensors: bytes 0 to 700001: sha256 is"},
		"cut": {func(from, _ *stagertest.Bucket) {
			from.Replace(model(from).Object("model.safetensors"), altered[:600_000])
		}, "", io.ErrUnexpectedEOF, "model.safetensors: the source ended"},
		"an object less":  {func(from, _ *stagertest.Bucket) { from.Remove(model(from).Object("model.gguf")) }, "", fs.ErrNotExist, "model.gguf is missing, though the manifest names it"},
		"another in to":   {func(from, to *stagertest.Bucket) { restage(t, from, to) }, "", fs.ErrExist, `is staged here at this commit as another manifest than where it comes from: "model.gguf" is in one of them only`},
		"an object in to": {func(from, to *stagertest.Bucket) { to.Replace(model(from).Object("config.json"), []byte("[]")) }, "", fs.ErrExist, "config.json has other content"},
	} {
		t.Run(name, func(t *testing.T) {
			from, _ := source(t)
			to := stagertest.NewBucket(t)
			if test.spoil != nil {
				test.spoil(from, to)
			}
			before := to.Contents()
			_, err := stage(t, from, to, test.revision)
			if err == nil || test.class != nil && !errors.Is(err, test.class) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			key := model(from).Key()
			if got, was := to.Contents()[key], before[key]; got != was {
				t.Errorf("the manifest is %q", got)
			}
		})
	}
}

// restage puts the model of a bucket into another one without its GGUF file.
func restage(t *testing.T, from, to *stagertest.Bucket) {
	t.Helper()
	s := stager.New(stager.Config{Source: plain{staged.New(from.Store(nil))}, Store: to.Store(nil), Select: stager.Selection{Exclude: []string{"*.gguf"}}})
	if _, err := s.Stage(t.Context(), manifest.Reference{Repo: repo}); err != nil {
		t.Fatal(err)
	}
}

// plain hides that the source has manifests.
type plain struct{ stager.Source }

// TestSelectionIsRefused for a model that has a manifest.
func TestSelectionIsRefused(t *testing.T) {
	from, _ := source(t)
	to := stagertest.NewBucket(t)
	s := stager.New(stager.Config{Source: staged.New(from.Store(nil)), Store: to.Store(nil), Select: stager.Selection{Exclude: []string{"*.gguf"}}})
	_, err := s.Stage(t.Context(), manifest.Reference{Repo: repo})
	if !errors.Is(err, stager.ErrSelection) || len(to.Contents()) > 0 {
		t.Errorf("%v; %q", err, slices.Collect(maps.Keys(to.Contents())))
	}
}

// TestMissingBucket is told from a model that is not staged.
func TestMissingBucket(t *testing.T) {
	gone := errors.New("the bucket does not exist")
	_, err := staged.New(missing{stagertest.NewBucket(t).Store(nil), gone}).Resolve(t.Context(), repo, "")
	if !errors.Is(err, gone) {
		t.Error(err)
	}
	if _, err := staged.New(stagertest.NewBucket(t).Store(nil)).Resolve(context.Background(), repo, ""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "acme/tuned is not staged in mem://bucket") {
		t.Error(err)
	}
}

type missing struct {
	*stagertest.Store
	err error
}

func (m missing) List(context.Context, string) iter.Seq2[stager.Object, error] {
	return func(yield func(stager.Object, error) bool) { yield(stager.Object{}, m.err) }
}
