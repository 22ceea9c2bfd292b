package stager_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/file"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

const chunkSize = 64 << 10

// repo is a repository in memory.
type repo struct {
	name  string
	files map[string][]byte
	large int // bytes from which a file is LFS
	tip   string
}

// exampleRepo has a file for every edge of chunks of 64 KiB and parts of two, and some to leave out.
func exampleRepo() *repo {
	r := &repo{name: "google/gemma-test", files: map[string][]byte{
		".gitattributes": []byte("*.safetensors filter=lfs\n"), "README.md": []byte("# A model\n"), "config.json": []byte(`{"a":1}`),
		"empty.txt": nil, "pytorch_model.bin": []byte("pickle"), "original/consolidated.00.pth": []byte("pickle"),
		"consolidated.safetensors": []byte("twice"),
	}, large: 1000}
	random := rand.NewChaCha8([32]byte{7})
	r.files["one.txt"] = []byte("1")
	for _, n := range []int{100, chunkSize - 1, chunkSize, chunkSize + 1, 2*chunkSize - 1, 2 * chunkSize, 2*chunkSize + 1, 5*chunkSize + 17, 67 * chunkSize} {
		r.files[fmt.Sprintf("model-%07d.safetensors", n)] = stagertest.Safetensors(n)
	}
	text := make([]byte, 3*chunkSize+5)
	random.Read(text)
	r.files["sub/dir/tokenizer.model"] = text
	return r
}

func (r *repo) Name() string            { return r.name }
func (r *repo) Commit() string          { return cmp.Or(r.tip, strings.Repeat("0123456789", 4)) }
func (r *repo) LastModified() time.Time { return time.Unix(1e9, 0) }

func (r *repo) Files() []hub.File {
	var files []hub.File
	for path, data := range r.files {
		files = append(files, hub.File{Path: path, Size: int64(len(data)), LFS: len(data) >= r.large,
			SHA256: func() ([32]byte, error) { return sha256.Sum256(data), nil }, GitSHA1: hub.GitSHA1(data)})
	}
	slices.SortFunc(files, func(a, b hub.File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

func (r *repo) Open(path string) (io.ReaderAt, error) { return bytes.NewReader(r.files[path]), nil }

// chosen are the files of exampleRepo that are staged.
func (r *repo) chosen() map[string][]byte {
	files := make(map[string][]byte)
	for path, data := range r.files {
		if !slices.Contains([]string{".gitattributes", "pytorch_model.bin", "original/consolidated.00.pth", "consolidated.safetensors"}, path) {
			files[path] = data
		}
	}
	return files
}

// serveHub returns a Hub and a source that reads it.
func serveHub(t *testing.T, c hub.Config, r ...hub.Repo) (*hub.Server, *hf.Source) {
	t.Helper()
	s := hub.New(c, r...)
	api, cdn := httptest.NewServer(s.Handler()), httptest.NewServer(s.CDN())
	t.Cleanup(api.Close)
	t.Cleanup(cdn.Close)
	s.SetCDN(cdn.URL)
	source, err := hf.New(hf.Config{Endpoint: api.URL, Wait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return s, source
}

// serveBuckets returns what opens a Cloud Storage bucket, which it makes the first time.
func serveBuckets(t *testing.T) (*bucket.Server, func(name string, w *wire) *gcs.Store) {
	t.Helper()
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	return b, func(name string, w *wire) *gcs.Store {
		_ = b.CreateBucket(name) // it may exist
		c := gcs.Config{Bucket: name, Prefix: "some/prefix/", Emulator: server.URL, Wait: time.Millisecond}
		if w != nil {
			c.Wrap = func(r http.RoundTripper) http.RoundTripper {
				w.RoundTripper = r
				return w
			}
		}
		store, err := gcs.New(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		return store
	}
}

// buckets returns an empty bucket of each kind, to be opened by several processes.
func buckets(t *testing.T) map[string]func(*testing.T) stager.Store {
	t.Helper()
	memory, dir := stagertest.NewBucket(t), t.TempDir()
	_, cloud := serveBuckets(t)
	return map[string]func(*testing.T) stager.Store{
		"memory": func(*testing.T) stager.Store { return memory.Store(nil) },
		"file":   func(t *testing.T) stager.Store { return openDir(t, dir) },
		"gcs":    func(*testing.T) stager.Store { return cloud("models", nil) },
	}
}

func openDir(t *testing.T, dir string) *file.Store {
	t.Helper()
	s, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newStager(source stager.Source, store stager.Store) *stager.Stager {
	return stager.New(stager.Config{Source: source, Store: store, ChunkSize: chunkSize, Memory: 8 * chunkSize})
}

// contents reads a whole bucket through its Store.
func contents(t *testing.T, s stager.Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, prefix := range []string{"google/", manifest.Private} {
		for o, err := range s.List(context.Background(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.Open(context.Background(), o.Key, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			r.Close()
			if err != nil || int64(len(data)) != o.Size {
				t.Fatalf("%s has %d bytes, listed as %d: %v", o.Key, len(data), o.Size, err)
			}
			all[o.Key] = string(data)
		}
	}
	return all
}

// checkStaged compares a bucket with a repository: exactly these objects, and nothing else.
func checkStaged(t *testing.T, s stager.Store, r *repo) {
	t.Helper()
	all := contents(t, s)
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	m, err := manifest.Parse([]byte(all[model.Key()]))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{model.Key(): all[model.Key()], manifest.RefKey(r.name, "main"): model.Commit}
	for path, data := range r.chosen() {
		want[model.Object(path)] = string(data)
		f := m.File(path)
		if f == nil || f.Size != int64(len(data)) || f.SHA256 != sha256.Sum256(data) {
			t.Errorf("the manifest says of %s: %v", path, f)
		}
	}
	if len(m.Files) != len(r.chosen()) {
		t.Errorf("the manifest has %d files, want %d", len(m.Files), len(r.chosen()))
	}
	for key, data := range all {
		if w, ok := want[key]; !ok {
			t.Errorf("%s is left over", key)
		} else if w != data {
			t.Errorf("%s has other bytes", key)
		}
	}
	for key := range want {
		if _, ok := all[key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
}

// TestRoads stages from the Hub to each kind of bucket, twice.
func TestRoads(t *testing.T) {
	r := exampleRepo()
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			_, source := serveHub(t, hub.Config{}, r)
			ref := manifest.Reference{Repo: r.name}
			first, err := newStager(source, open(t)).Stage(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			checkStaged(t, open(t), r)
			second, err := newStager(source, open(t)).Stage(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if !second.Already || second.Fetched != 0 || second.Sum != first.Sum || first.Already || first.Fetched != first.Manifest.Size() || first.Ref != "main" {
				t.Errorf("first %+v, then %+v", first, second)
			}
			checkStaged(t, open(t), r)
		})
	}
}
