package bare_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/bench/staging/bare"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

type repo map[string][]byte

func (r repo) Name() string                          { return "org/bare" }
func (r repo) Commit() string                        { return "0123456789012345678901234567890123456789" }
func (r repo) LastModified() time.Time               { return time.Unix(1e9, 0) }
func (r repo) Open(path string) (io.ReaderAt, error) { return bytes.NewReader(r[path]), nil }
func (r repo) Files() (files []hub.File) {
	for path, data := range r {
		files = append(files, hub.File{Path: path, Size: int64(len(data)), LFS: len(data) > 1000, GitSHA1: hub.GitSHA1(data),
			SHA256: func() ([32]byte, error) { return [32]byte{1}, nil }})
	}
	slices.SortFunc(files, func(a, b hub.File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// TestCopy looks at every byte that arrived, and counts the requests.
func TestCopy(t *testing.T) {
	const rangeSize = 4096
	r := repo{"config.json": []byte("{}"), "model.safetensors": bytes.Repeat([]byte("0123456"), 5000)}
	h := hub.New(hub.Config{}, r)
	api, cdn := httptest.NewServer(h.Handler()), httptest.NewServer(h.CDN())
	defer api.Close()
	defer cdn.Close()
	h.SetCDN(cdn.URL)
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	service := httptest.NewServer(b)
	defer service.Close()
	got, err := bare.Copy(t.Context(), bare.Config{Hub: api.URL, Bucket: service.URL, Name: "models", Repo: "org/bare", Range: rangeSize})
	if err != nil || got.Bytes != 35002 || got.Ranges != 10 {
		t.Fatalf("%+v, %v", got, err)
	}
	for path, data := range r {
		for off := 0; off < len(data); off += 2 * rangeSize {
			resp, err := http.Get(fmt.Sprintf("%s/models/bare/%s/%d", service.URL, path, off))
			if err != nil {
				t.Fatal(err)
			}
			stored, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(stored, data[off:min(off+2*rangeSize, len(data))]) {
				t.Errorf("%s at %d: %d bytes, %v", path, off, len(stored), err)
			}
		}
	}
	if n := len(b.Requests()); n != 6+6 {
		t.Errorf("%d requests to the bucket, want one an object and those of this test", n)
	}
	if _, err := bare.Copy(t.Context(), bare.Config{Hub: api.URL, Bucket: service.URL, Name: "absent", Repo: "org/bare"}); err == nil {
		t.Error("a bucket that is not there")
	}
}
