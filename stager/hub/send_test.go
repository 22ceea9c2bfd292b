package hub

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// one is a repository of one file that may be in memory or on a disk.
type one struct {
	Repo
	open func() (io.ReaderAt, error)
}

func (o one) Open(string) (io.ReaderAt, error) { return o.open() }

func TestRangesOfEverySize(t *testing.T) {
	const n = 1 << 20 // the buffer
	for _, size := range []int{0, 1, n - 1, n, n + 1, 2 * n} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i*7 + i>>8 + i>>16)
		}
		onDisk := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(onDisk, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for kind, open := range map[string]func() (io.ReaderAt, error){
			"memory": func() (io.ReaderAt, error) { return strings.NewReader(string(data)), nil },
			"disk":   func() (io.ReaderAt, error) { return os.Open(onDisk) },
		} {
			t.Run(fmt.Sprint(kind, size), func(t *testing.T) { testRanges(t, data, one{open: open}) })
		}
	}
}

func testRanges(t *testing.T, data []byte, repo Repo) {
	size := int64(len(data))
	s, f := New(Config{}), &File{Path: "f", Size: size}
	ts := httptest.NewServer(s.record("api", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.send(w, r, repo, f, `"tag"`); err != nil {
			t.Error(err)
		}
	})))
	defer ts.Close()
	edges := []int64{0, 1, size/2 - 1, size / 2, size - 1, size, size + 1}
	for _, a := range edges {
		for _, b := range edges {
			if b < a-1 { // b == a-1 stands for all of them
				continue
			}
			check(t, ts.URL, data, fmt.Sprintf("bytes=%d-%d", a, b), a, min(b+1, size), a >= 0 && b >= a && a < size, a >= 0 && b >= a && a >= size)
		}
		check(t, ts.URL, data, fmt.Sprintf("bytes=%d-", a), a, size, a >= 0 && a < size, a >= size)
		check(t, ts.URL, data, fmt.Sprintf("bytes=-%d", a), max(size-a, 0), size, a > 0 && size > 0, a == 0 || (a > 0 && size == 0))
	}
	for _, whole := range []string{"", "bytes=", "bytes=-", "bytes=0-1,3-4", "bytes=a-b", "bytes=1--2", "items=0-1", "bytes=+1-2", "bytes=0x1-2"} {
		check(t, ts.URL, data, whole, 0, size, false, false)
	}
}

// check asks for a range: partial wants data[from:to], unsatisfiable a 416, neither everything.
func check(t *testing.T, url string, data []byte, asked string, from, to int64, partial, unsatisfiable bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if asked != "" {
		req.Header.Set("Range", asked)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	status, want, contentRange := 200, data, ""
	switch {
	case unsatisfiable:
		status, contentRange = 416, fmt.Sprintf("bytes */%d", len(data))
	case partial:
		status, want, contentRange = 206, data[from:to], fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data))
	}
	if resp.StatusCode != status || resp.Header.Get("Content-Range") != contentRange {
		t.Errorf("%q of %d bytes: %d, Content-Range %q; want %d, %q", asked, len(data), resp.StatusCode, resp.Header.Get("Content-Range"), status, contentRange)
	}
	if status != 416 && (string(body) != string(want) || resp.ContentLength != int64(len(want))) {
		t.Errorf("%q of %d bytes: %d other bytes, Content-Length %d, want %d", asked, len(data), len(body), resp.ContentLength, len(want))
	}
}

func TestConditionsAndRanges(t *testing.T) {
	s := New(Config{})
	repo := one{open: func() (io.ReaderAt, error) { return strings.NewReader("0123456789"), nil }}
	for _, c := range []struct {
		method, header, value string
		status                int
	}{
		{"GET", "If-Range", `"tag"`, 206},
		{"GET", "If-Range", `"other"`, 200},
		{"GET", "If-Range", `W/"tag"`, 200}, // a weak tag does not promise equal bytes
		{"GET", "If-Range", "Wed, 21 Oct 2026 07:28:00 GMT", 200},
		{"GET", "If-None-Match", `"tag"`, 304},
		{"GET", "If-None-Match", `"a", W/"tag"`, 304},
		{"GET", "If-None-Match", "*", 304},
		{"GET", "If-None-Match", `"a"`, 206},
		{"HEAD", "If-None-Match", `"a"`, 200}, // Range is for GET
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		r.Header.Set("Range", "bytes=2-3")
		r.Header.Set(c.header, c.value)
		w := httptest.NewRecorder()
		if err := s.send(w, r, repo, &File{Size: 10}, `"tag"`); err != nil {
			t.Error(err)
		}
		if w.Code != c.status || w.Header().Get("ETag") != `"tag"` {
			t.Errorf("%s with %s: %s: %d, want %d", c.method, c.header, c.value, w.Code, c.status)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=5-", "bytes=-5", "bytes=99999999999999999999-", "bytes=-99999999999999999999", "bytes= 1-2 ", "x"} {
		f.Add(s, int64(10))
	}
	f.Add("bytes=0-9223372036854775807", int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, n, err := parseRange(header, size)
		switch {
		case err != nil && !errors.Is(err, errNoRange) && !errors.Is(err, errUnsatisfiable):
			t.Errorf("unexpected error %v", err)
		case err == nil && (off < 0 || n < 1 || off > size-n):
			t.Errorf("%q of %d: %d bytes at %d are not in it", header, size, n, off)
		}
	})
}
