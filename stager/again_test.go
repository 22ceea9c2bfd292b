package stager_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// TestMissingObjects removes objects of a staged model: they are brought back, and the manifest stays.
func TestMissingObjects(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	for name, open := range buckets(t) {
		if name == "memory" {
			continue // it sees to it that nothing is deleted through it
		}
		for _, gone := range [][]string{{"config.json"}, {"empty.txt"}, {"model-0327697.safetensors"}, {"model-0065536.safetensors", "config.json"}} {
			t.Run(name+" "+strings.Join(gone, " "), func(t *testing.T) {
				store := open(t)
				first, err := stage(t, &memory{repo: r}, store)
				if err != nil {
					t.Fatal(err)
				}
				lost := int64(0)
				for _, path := range gone {
					lost += int64(len(r.files[path]))
					if err := store.Delete(t.Context(), model.Object(path)); err != nil {
						t.Fatal(err)
					}
				}
				// The division is the manifest's, whatever this process would choose.
				s := stager.New(stager.Config{Source: &memory{repo: r}, Store: store, ChunkSize: 2 * chunkSize, Memory: 8 * chunkSize})
				second, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
				if err != nil || second.Already || second.Fetched != lost || second.Sum != first.Sum {
					t.Fatalf("%+v, %v: want %d bytes", second, err, lost)
				}
				checkStaged(t, store, r)
				if string(second.Raw) != contents(t, store)[model.Key()] {
					t.Error("the manifest is another")
				}
				if third, err := stage(t, &memory{repo: r}, store); err != nil || !third.Already {
					t.Errorf("%+v, %v", third, err)
				}
			})
		}
	}
}

// TestMissingAndDifferent lacks an object and cannot be completed: the error says what differs.
func TestMissingAndDifferent(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	const weights = "model-0327697.safetensors"
	other := smallRepo()
	other.files["config.json"] = []byte(`{"a":2}`)
	for name, test := range map[string]struct {
		source *memory
		spoil  func(*stagertest.Bucket)
		text   string
	}{
		"a file less": {&memory{repo: r, listing: func(f []stager.RemoteFile) []stager.RemoteFile {
			return slices.DeleteFunc(f, func(f stager.RemoteFile) bool { return f.Path == "empty.txt" })
		}}, nil, "4 files instead of 3"},
		"other bytes":   {&memory{repo: other}, nil, "config.json"},
		"another size":  {&memory{repo: r}, func(b *stagertest.Bucket) { b.Replace(model.Object(weights), []byte("short")) }, weights},
		"damaged bytes": {&memory{repo: r}, func(b *stagertest.Bucket) { b.Replace(model.Object(weights), make([]byte, 327697)) }, weights},
	} {
		t.Run(name, func(t *testing.T) {
			bucket := stagertest.NewBucket(t)
			store := bucket.Store(nil)
			if _, err := stage(t, &memory{repo: r}, store); err != nil {
				t.Fatal(err)
			}
			raw := bucket.Contents()[model.Key()]
			if test.spoil == nil {
				bucket.Remove(model.Object("config.json"))
			} else {
				test.spoil(bucket)
			}
			if _, err := stage(t, test.source, store); err == nil || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if bucket.Contents()[model.Key()] != raw {
				t.Error("the manifest is another")
			}
		})
	}
}

// moving is a source whose branch moves on after the first question.
type moving struct {
	*memory
	then func(stager.Snapshot) (stager.Snapshot, error)
	n    int
}

func (m *moving) Resolve(ctx context.Context, repo, revision string) (stager.Snapshot, error) {
	s, err := m.memory.Resolve(ctx, repo, revision)
	if m.n++; m.n == 1 || err != nil {
		return s, err
	}
	return m.then(s)
}

// TestRefMovesForward writes a ref that names another commit only where that is still the source's.
func TestRefMovesForward(t *testing.T) {
	r := smallRepo()
	key, other := manifest.RefKey(r.name, "main"), strings.Repeat("f", 40)
	lost := errors.New("lost")
	for name, test := range map[string]struct {
		then   func(stager.Snapshot) (stager.Snapshot, error)
		ref    string
		class  error
		commit string
	}{
		"still":    {func(s stager.Snapshot) (stager.Snapshot, error) { return s, nil }, "main", nil, r.Commit()},
		"moved on": {func(s stager.Snapshot) (stager.Snapshot, error) { s.Model.Commit = other; return s, nil }, "", nil, other},
		"removed":  {func(s stager.Snapshot) (stager.Snapshot, error) { return s, fs.ErrNotExist }, "", nil, other},
		"unknown":  {func(s stager.Snapshot) (stager.Snapshot, error) { return s, lost }, "main", lost, other},
	} {
		t.Run(name, func(t *testing.T) {
			bucket := stagertest.NewBucket(t)
			if err := bucket.Store(nil).Put(t.Context(), key, 0, []byte(other)); err != nil {
				t.Fatal(err)
			}
			result, err := stage(t, &moving{memory: &memory{repo: r}, then: test.then}, bucket.Store(nil))
			if !errors.Is(err, test.class) || result.Ref != test.ref {
				t.Errorf("%+v, %v", result.Ref, err)
			}
			if got := bucket.Contents()[key]; got != test.commit {
				t.Errorf("the ref names %s", got)
			}
		})
	}
}

type prefixed struct {
	stager.Store
	prefix string
}

func (p prefixed) KeyPrefix() string { return p.prefix }

// TestRefusedBeforeTheFirstByte cannot be staged, which is known before anything is copied.
func TestRefusedBeforeTheFirstByte(t *testing.T) {
	r := smallRepo()
	add := func(files ...stager.RemoteFile) func([]stager.RemoteFile) []stager.RemoteFile {
		return func(all []stager.RemoteFile) []stager.RemoteFile { return append(all, files...) }
	}
	var many []stager.RemoteFile
	for i := range 22_000 {
		path := fmt.Sprintf("%s/%s/%0200d", strings.Repeat("d", 250), strings.Repeat("e", 250), i)
		many = append(many, stager.RemoteFile{Path: path, GitSHA1: strings.Repeat("0", 40)})
	}
	for name, test := range map[string]struct {
		revision, prefix string
		listing          func([]stager.RemoteFile) []stager.RemoteFile
		text             string
	}{
		"a long ref":           {revision: strings.Repeat("a/", 100) + "b", text: "401 bytes"},
		"a long prefix":        {prefix: strings.Repeat("p", 1000) + "/", text: "1024"},
		"a huge file":          {listing: add(stager.RemoteFile{Path: "huge", Size: math.MaxInt64, SHA256: &manifest.Digest{}}), text: "huge"},
		"a negative size":      {listing: add(stager.RemoteFile{Path: "small", Size: -1, SHA256: &manifest.Digest{}}), text: "small"},
		"many chunks":          {listing: add(stager.RemoteFile{Path: "a", Size: 1 << 37, SHA256: &manifest.Digest{}}, stager.RemoteFile{Path: "b", Size: 1 << 37, SHA256: &manifest.Digest{}}), text: "readers"},
		"as many as there are": {listing: add(many...), text: "readers"},
	} {
		t.Run(name, func(t *testing.T) {
			bucket, source := stagertest.NewBucket(t), &memory{repo: r, listing: test.listing}
			s := newStager(source, prefixed{bucket.Store(nil), test.prefix})
			_, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name, Revision: test.revision})
			if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%.500v", err)
			}
			if len(source.fetched) != 0 || len(bucket.Contents()) != 0 {
				t.Errorf("fetched %v, stored %d", source.fetched, len(bucket.Contents()))
			}
		})
	}
}
