package hub

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// blank is as many zero bytes as anybody asks for, at no cost.
type blank struct{}

func (blank) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

// plainReader hides that it is a file from the server.
type plainReader struct {
	io.ReaderAt
	io.Closer
}

func openPlain(path string) (io.ReaderAt, error) {
	f, err := os.Open(path)
	return plainReader{f, f}, err
}

// BenchmarkSend measures the server and a client that throws everything away: what a test that
// reads from this Hub can reach at most. "plain" is net/http's own file server.
func BenchmarkSend(b *testing.B) {
	const size = 256 << 20
	path := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	s := New(Config{})
	answer := func(repo Repo) http.Handler {
		return s.record("cdn", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream") // or net/http looks at the first bytes
			if err := s.send(w, r, repo, &File{Path: "f", Size: size}, `"tag"`); err != nil {
				b.Error(err)
			}
		}))
	}
	for name, h := range map[string]http.Handler{
		"disk":   answer(one{open: func() (io.ReaderAt, error) { return os.Open(path) }}),
		"pread":  answer(one{open: func() (io.ReaderAt, error) { return openPlain(path) }}),
		"memory": answer(one{open: func() (io.ReaderAt, error) { return blank{}, nil }}),
		"plain":  http.FileServer(http.Dir(filepath.Dir(path))),
	} {
		b.Run(name, func(b *testing.B) {
			ts := httptest.NewServer(h)
			defer ts.Close()
			b.SetBytes(size)
			buf := make([]byte, 1<<20)
			for b.Loop() {
				resp, err := http.Get(ts.URL + "/f")
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
				resp.Body.Close()
				if n != size || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}
