package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cloud.google.com/go/storage"
	"cloud.google.com/go/storage/transfermanager"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"github.com/headstart-serving/headstart/stager/bucket"
)

// host is a bucket server on loopback with one bucket, and a client that nobody here wrote.
type host struct {
	*bucket.Server
	URL    string
	http   *http.Client
	client *storage.Client
}

const name = "models"

func start(t testing.TB, dir string, options ...option.ClientOption) *host {
	t.Helper()
	s, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket(name); err != nil {
		t.Fatal(err)
	}
	return serve(t, s, options...)
}

func serve(t testing.TB, s *bucket.Server, options ...option.ClientOption) *host {
	t.Helper()
	return serveAs(t, s, s, options...)
}

// serveAs serves s as handler shows it.
func serveAs(t testing.TB, s *bucket.Server, handler http.Handler, options ...option.ClientOption) *host {
	t.Helper()
	srv := httptest.NewServer(handler)
	hc := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	options = append([]option.ClientOption{option.WithEndpoint(srv.URL + "/storage/v1/"), option.WithHTTPClient(hc), option.WithoutAuthentication()}, options...)
	c, err := storage.NewClient(context.Background(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		hc.CloseIdleConnections()
		srv.Close()
		s.Close()
	})
	return &host{Server: s, URL: srv.URL, http: hc, client: c}
}

func (h *host) object(o string) *storage.ObjectHandle { return h.client.Bucket(name).Object(o) }

func put(t testing.TB, o *storage.ObjectHandle, data []byte) *storage.ObjectAttrs {
	t.Helper()
	w := o.NewWriter(t.Context())
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.Attrs()
}

func get(t testing.TB, o *storage.ObjectHandle, off, n int64) []byte {
	t.Helper()
	r, err := o.NewRangeReader(t.Context(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func names(t testing.TB, h *host, q *storage.Query) string {
	t.Helper()
	var list []string
	for it := h.client.Bucket(name).Objects(t.Context(), q); ; {
		o, err := it.Next()
		if err == iterator.Done {
			return strings.Join(list, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Prefix+o.Name)
	}
}

// status returns the HTTP status in a client's error.
func status(err error) int {
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		return e.Code
	}
	if errors.Is(err, storage.ErrObjectNotExist) || errors.Is(err, storage.ErrBucketNotExist) {
		return 404
	}
	return 0
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(n) + 12345
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestGoClient(t *testing.T) {
	for _, road := range []struct {
		name    string
		options []option.ClientOption
	}{{"xml", nil}, {"json", []option.ClientOption{storage.WithJSONReads()}}} {
		t.Run(road.name, func(t *testing.T) {
			h := start(t, t.TempDir(), road.options...)
			for _, n := range []int{0, 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 512 << 10, 1<<20 + 7} {
				for _, chunk := range []int{0, 256 << 10, 16 << 20} {
					data, o := pattern(n), h.object(fmt.Sprintf("dir/%d-%d", n, chunk))
					w := o.NewWriter(t.Context())
					w.ChunkSize = chunk
					if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
						t.Fatal(err)
					}
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					if got := get(t, o, 0, -1); !bytes.Equal(got, data) {
						t.Fatalf("%d bytes in chunks of %d: got %d bytes", n, chunk, len(got))
					}
					if n > 2 {
						if got := get(t, o, 1, int64(n-2)); !bytes.Equal(got, data[1:n-1]) {
							t.Fatalf("range of %d bytes differs", n)
						}
						if got := get(t, o, -2, -1); !bytes.Equal(got, data[n-2:]) {
							t.Fatalf("last bytes of %d differ", n)
						}
					}
				}
			}
		})
	}
}

// TestEmulatorHost uses the variable by which every Google client finds an emulator, and the client's own
// parallel downloader.
func TestEmulatorHost(t *testing.T) {
	h := start(t, t.TempDir())
	t.Setenv("STORAGE_EMULATOR_HOST", h.URL)
	c, err := storage.NewClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := pattern(3<<20 + 5)
	put(t, c.Bucket(name).Object("a"), data)
	d, err := transfermanager.NewDownloader(c, transfermanager.WithWorkers(4), transfermanager.WithPartSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	buf := transfermanager.NewDownloadBuffer(make([]byte, len(data)))
	if err := d.DownloadObject(t.Context(), &transfermanager.DownloadObjectInput{Bucket: name, Object: "a", Destination: buf}); err != nil {
		t.Fatal(err)
	}
	results, err := d.WaitAndClose()
	if err != nil || len(results) != 1 || results[0].Err != nil {
		t.Fatal(results, err)
	}
	if !bytes.Equal(buf.Bytes(), data) {
		t.Error("the bytes differ")
	}
}
