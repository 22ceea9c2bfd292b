package bucket_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/headstart-serving/headstart/stager/bucket"
)

// sink is the answer to a read, seen from below: what net/http's own does with a file is sendfile.
type sink struct {
	*httptest.ResponseRecorder
	files, other int
}

func (s *sink) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if _, ok := limited.R.(*os.File); ok {
			s.files++
			return io.Copy(io.Discard, r)
		}
	}
	s.other++
	return io.Copy(io.Discard, r)
}

func (s *sink) Write(p []byte) (int, error) {
	s.other++
	return len(p), nil
}

// Bytes reach net/http as a bare file behind a limit, which it gives to sendfile; shaped too.
func TestReadsAreSendfile(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", pattern(600<<10))
	for what, handler := range map[string]http.Handler{"plain": h.Server, "shaped": bucket.Shape{Total: 1 << 30}.Handler(h.Server)} {
		for _, path := range both("a") {
			w := &sink{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Range", "bytes=1-")
			handler.ServeHTTP(w, r)
			if w.files == 0 || w.other != 0 {
				t.Errorf("%s %s: %d files, %d other writes", what, path, w.files, w.other)
			}
		}
	}
}

// cpu reports the processor time of client and server together, which a busy machine disturbs least.
func cpu(b *testing.B, size int) (end func()) {
	used := func() float64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	before := used()
	return func() { b.ReportMetric((used()-before)/float64(b.N)/float64(size)*1e9, "cpu-s/GB") }
}

// BenchmarkRead reads a 1 GiB object in parallel ranges of 16 MiB over loopback and drops the bytes.
func BenchmarkRead(b *testing.B) {
	const size, part = 1 << 30, 16 << 20
	h := start(b, b.TempDir())
	put(b, h.object("a"), make([]byte, size))
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprint("streams=", streams), func(b *testing.B) {
			b.SetBytes(size)
			defer cpu(b, size)()
			for b.Loop() {
				offsets := make(chan int)
				var group sync.WaitGroup
				for range streams {
					group.Go(func() {
						for off := range offsets {
							r, err := http.NewRequest("GET", h.URL+"/models/a", nil)
							if err != nil {
								b.Error(err)
							}
							r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+part-1))
							resp, err := h.http.Do(r)
							if err != nil {
								b.Error(err)
								continue
							}
							if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 1<<20)); n != part || err != nil {
								b.Error(n, err)
							}
							resp.Body.Close()
						}
					})
				}
				for off := 0; off < size; off += part {
					offsets <- off
				}
				close(offsets)
				group.Wait()
			}
		})
	}
}

// BenchmarkUpload sends objects of 64 MiB in one request each.
func BenchmarkUpload(b *testing.B) {
	for _, omit := range []bool{false, true} {
		b.Run(fmt.Sprint("md5=", !omit), func(b *testing.B) {
			h := start(b, b.TempDir())
			h.OmitMD5 = omit
			data := make([]byte, 64<<20)
			b.SetBytes(int64(len(data)))
			defer cpu(b, len(data))()
			for b.Loop() {
				h.upload(b, "a", data)
			}
		})
	}
}
