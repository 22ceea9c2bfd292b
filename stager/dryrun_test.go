package stager_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// TestPlanSaysWhatStageDoes stops a run at each of its events, plans, and compares the plan with what the
// next run does, in every kind of bucket. The plan leaves no trace.
func TestPlanSaysWhatStageDoes(t *testing.T) {
	r := smallRepo()
	ref := manifest.Reference{Repo: r.name}
	partly := 0
	for _, name := range []string{"memory", "file", "gcs"} {
		for stop := 0; ; stop++ {
			store, settle := settling(t, name)
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			first := stager.New(stager.Config{Source: &memory{repo: r}, Store: store, ChunkSize: chunkSize, Memory: 8 * chunkSize, Streams: 1, Progress: func(stager.Event) {
				if n++; n == stop {
					cancel()
				}
			}})
			_, failed := first.Stage(ctx, ref)
			cancel()
			store = settle()
			before := contents(t, store)
			plan, err := newStager(&memory{repo: r}, store).Plan(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if after := contents(t, store); !maps.Equal(before, after) {
				t.Fatalf("%s, event %d: the plan changes the bucket", name, stop)
			}
			size, there, _ := plan.Total()
			result, err := stage(t, &memory{repo: r}, store)
			if err != nil {
				t.Fatal(err)
			}
			if plan.Already != result.Already || size != result.Manifest.Size() || size-there != result.Fetched || plan.Ref != "main" {
				t.Errorf("%s, event %d: %d of %d bytes there (already: %v), but %+v", name, stop, there, size, plan.Already, result)
			}
			if there > 0 && there < size {
				partly++
			}
			if failed == nil && stop > 0 {
				break
			}
		}
	}
	if partly < 10 {
		t.Errorf("only %d runs left something and not all", partly)
	}
}

// settling returns an empty bucket, and what returns it again after every request has ended: one that was
// cancelled may still be carried out.
func settling(t *testing.T, kind string) (stager.Store, func() stager.Store) {
	if kind != "gcs" {
		store := buckets(t)[kind](t)
		return store, func() stager.Store { return store }
	}
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	open := func() (stager.Store, *httptest.Server) {
		server := httptest.NewServer(b)
		t.Cleanup(server.Close)
		store, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL, Wait: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		return store, server
	}
	store, server := open()
	return store, func() stager.Store {
		server.Close()
		store, _ := open()
		return store
	}
}

// TestPlanWritesNothing looks at a directory, down to the times of its folders.
func TestPlanWritesNothing(t *testing.T) {
	r, dir := smallRepo(), t.TempDir()
	look := func() map[string]string {
		all := make(map[string]string)
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			all[path] = info.ModTime().String()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := look()
	if _, err := newStager(&memory{repo: r}, openDir(t, dir)).Plan(t.Context(), manifest.Reference{Repo: r.name}); err != nil {
		t.Fatal(err)
	}
	if after := look(); !maps.Equal(before, after) {
		t.Errorf("%v, then %v", before, after)
	}
}

// TestPlanFails where Stage would.
func TestPlanFails(t *testing.T) {
	r := smallRepo()
	bucket := stagertest.NewBucket(t)
	key := manifest.Model{Repo: r.name, Commit: r.Commit()}.Object("config.json")
	bucket.Replace(key, []byte("of another size"))
	_, err := newStager(&memory{repo: r}, bucket.Store(nil)).Plan(t.Context(), manifest.Reference{Repo: r.name})
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "config.json has other content") {
		t.Error(err)
	}
}

func selecting(r *repo, store stager.Store, include, exclude []string) *stager.Stager {
	return stager.New(stager.Config{Source: &memory{repo: r}, Store: store, ChunkSize: chunkSize, Memory: 8 * chunkSize,
		Select: stager.Selection{Include: include, Exclude: exclude}})
}

// TestReselection stages one commit with one selection and then with another one. The manifest stays, and
// what differs is named.
func TestReselection(t *testing.T) {
	r := exampleRepo()
	ref := manifest.Reference{Repo: r.name}
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	bin, one := []string{"pytorch_model.bin"}, []string{"one.txt"}
	for _, test := range []struct {
		name             string
		first, second    [2][]string
		fail             string
		missing, already bool
	}{
		{"the same", [2][]string{bin, one}, [2][]string{bin, one}, "", false, true},
		{"none, then none", [2][]string{}, [2][]string{}, "", false, true},
		{"some, then none", [2][]string{bin, one}, [2][]string{}, "", false, true},
		{"none, then what it is", [2][]string{}, [2][]string{{"one.txt"}}, "", false, true},
		{"none, then more", [2][]string{}, [2][]string{bin}, `"pytorch_model.bin" is selected now and not in it`, false, false},
		{"none, then less", [2][]string{}, [2][]string{nil, one}, `"one.txt" is in it and not selected now`, false, false},
		{"none, then less, one missing", [2][]string{}, [2][]string{nil, one}, `"one.txt" is in it and not selected now`, true, false},
		{"some, then none, one missing", [2][]string{bin, one}, [2][]string{}, "", true, false},
		{"the same, one missing", [2][]string{bin, one}, [2][]string{bin, one}, "", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			bucket := stagertest.NewBucket(t)
			store := bucket.Store(nil)
			first, err := selecting(r, store, test.first[0], test.first[1]).Stage(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if test.missing {
				bucket.Remove(model.Object("config.json"))
			}
			before := bucket.Contents()
			second, err := selecting(r, store, test.second[0], test.second[1]).Stage(t.Context(), ref)
			if test.fail != "" {
				if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), test.fail) || !strings.Contains(err.Error(), "remove its manifest "+model.Key()) {
					t.Errorf("%v", err)
				}
				if !maps.Equal(before, bucket.Contents()) {
					t.Error("the bucket is another")
				}
				return
			}
			if err != nil || second.Already != test.already || second.Sum != first.Sum {
				t.Errorf("%+v, %v", second, err)
			}
		})
	}
}

// TestTwoSelectionsAtOnce lets a run with other patterns end while one is under way: one manifest stays.
func TestTwoSelectionsAtOnce(t *testing.T) {
	r := smallRepo()
	ref := manifest.Reference{Repo: r.name}
	bucket := stagertest.NewBucket(t)
	var once sync.Once
	var other stager.Result
	slow := &memory{repo: r, bytes: func(_ context.Context, _ string, _ int64, data []byte) (io.Reader, error) {
		once.Do(func() {
			var err error
			if other, err = selecting(r, bucket.Store(nil), nil, []string{"empty.txt"}).Stage(context.Background(), ref); err != nil {
				t.Error(err)
			}
		})
		return strings.NewReader(string(data)), nil
	}}
	if _, err := stage(t, slow, bucket.Store(nil)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	if got := bucket.Contents()[other.Manifest.Model.Key()]; got != string(other.Raw) {
		t.Errorf("the manifest is %s", got)
	}
}
