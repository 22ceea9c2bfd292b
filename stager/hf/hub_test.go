package hf_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	commit = "1111111111111111111111111111111111111111"
	token  = "hf_verysecret"
	weight = "model.safetensors"
	size   = 1<<20 + 300<<10 + 5 // of the weight file
)

// repo is a repository in memory; files named *.safetensors are LFS files.
type repo map[string][]byte

func (r repo) Name() string            { return "org/tiny" }
func (r repo) Commit() string          { return commit }
func (r repo) LastModified() time.Time { return time.Unix(1_750_000_000, 0) }

func (r repo) Files() []hub.File {
	var files []hub.File
	for path, data := range r {
		files = append(files, hub.File{Path: path, Size: int64(len(data)), LFS: strings.HasSuffix(path, ".safetensors"),
			SHA256: func() ([32]byte, error) { return sha256.Sum256(data), nil }, GitSHA1: hub.GitSHA1(data)})
	}
	slices.SortFunc(files, func(a, b hub.File) int { return cmp.Compare(a.Path, b.Path) })
	return files
}

func (r repo) Open(path string) (io.ReaderAt, error) { return bytes.NewReader(r[path]), nil }

func tiny() repo {
	weights := make([]byte, size)
	rand.NewChaCha8([32]byte{3}).Read(weights)
	return repo{weight: weights, "config.json": []byte(`{"model_type":"tiny"}`), "sub/a b#%?ü.txt": []byte("text"), "empty.txt": nil}
}

// served is a running Hub and a source that reads it.
type served struct {
	*hub.Server
	*hf.Source
	repo     repo
	api, cdn *httptest.Server
}

func serve(t *testing.T, h hub.Config, c hf.Config) *served {
	t.Helper()
	s := &served{repo: tiny()}
	s.Server = hub.New(h, s.repo)
	s.api, s.cdn = httptest.NewServer(s.Handler()), httptest.NewServer(s.CDN())
	t.Cleanup(s.api.Close)
	t.Cleanup(s.cdn.Close)
	s.SetCDN(s.cdn.URL)
	c.Endpoint = s.api.URL + "/"
	s.Source = source(t, c)
	return s
}

func source(t *testing.T, c hf.Config) *hf.Source {
	t.Helper()
	c.Wait, c.Patient = cmp.Or(c.Wait, time.Millisecond), cmp.Or(c.Patient, time.Millisecond)
	s, err := hf.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var model = manifest.Model{Repo: "org/tiny", Commit: commit}

// remote describes a file as the Hub does.
func (s *served) remote(t *testing.T, path string) stager.RemoteFile {
	t.Helper()
	files, err := s.Source.Files(t.Context(), model)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(files, func(f stager.RemoteFile) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("%s is not listed", path)
	}
	return files[i]
}

// read reads a range of a file.
func (s *served) read(ctx context.Context, f stager.RemoteFile, off, n int64) ([]byte, error) {
	r, err := s.Source.Open(ctx, model, f, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// all resolves, lists and reads the weight file, as a stager would.
func (s *served) all(ctx context.Context) error {
	snapshot, err := s.Source.Resolve(ctx, "org/tiny", "")
	if err != nil {
		return err
	}
	files, err := s.Source.Files(ctx, snapshot.Model)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Size == 0 {
			continue
		}
		data, err := s.read(ctx, f, 0, f.Size)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, s.repo[f.Path]) {
			return &manifest.MismatchError{Path: f.Path}
		}
	}
	return nil
}

// Requests lists the requests so far: "api GET /path".
func (s *served) requests() []string {
	var list []string
	for _, r := range s.Server.Requests() {
		list = append(list, r.Host+" "+r.Method+" "+r.Path)
	}
	return list
}

func on(part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.Contains(r.Method+" "+r.URL.Path, part) }
}
