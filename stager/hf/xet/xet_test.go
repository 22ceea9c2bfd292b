package xet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// fake is a store and the host of its xorbs, in memory. It is an error of the client to bring a token to that host, or
// none to the store, or to ask for another range than the one in a plan.
type fake struct {
	t       *testing.T
	layout  *xorb.Layout
	size    int64
	v1      bool // it knows version 1 alone, and says so with missing
	missing int
	small   bool // so are the client's limits

	plan func(document map[string]any) // changes a plan
	edit func(r *http.Response)        // changes any answer

	asked []string // "v2 0-9" or "xorb 0 0-99"
}

func serve(t *testing.T, data []byte, c xorb.Config) *fake {
	return &fake{t: t, size: int64(len(data)), layout: xorb.New(func() (io.ReaderAt, error) { return bytes.NewReader(data), nil }, int64(len(data)), c)}
}

func (f *fake) client() *Client {
	c := New(f, "headstart/test")
	if f.small {
		c.window, c.maxOver = 5000, 5000
	}
	return c
}

func token() Token {
	return Token{Access: "secret", Expires: time.Now().Add(time.Hour), CAS: &url.URL{Scheme: "https", Host: "cas.test", Path: "/base/"}}
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	var first, last int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
		f.t.Errorf("Range %q", r.Header.Get("Range"))
	}
	answer := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r}
	var body []byte
	if r.URL.Host == "cas.test" {
		body = f.reconstruct(r, answer, first, last+1)
	} else {
		body = f.xorb(r, answer, first, last+1)
	}
	answer.ContentLength = int64(len(body))
	answer.Body = io.NopCloser(iotest.HalfReader(bytes.NewReader(body)))
	if f.edit != nil {
		f.edit(answer)
	}
	return answer, nil
}

func (f *fake) reconstruct(r *http.Request, answer *http.Response, off, end int64) []byte {
	version, _ := strings.CutPrefix(r.URL.Path, "/base/")
	version, rest, _ := strings.Cut(version, "/")
	if rest != "reconstructions/"+hash || r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("X-Xet-Session-Id") == "" {
		f.t.Errorf("%s with %v", r.URL, r.Header)
	}
	f.asked = append(f.asked, fmt.Sprintf("%s %d-%d", version, off, end))
	if f.v1 && version != "v1" {
		answer.StatusCode = cmp.Or(f.missing, http.StatusNotFound)
		return nil
	}
	if off >= f.size {
		answer.StatusCode = http.StatusRequestedRangeNotSatisfiable
		return nil
	}
	list, skip, err := f.layout.Terms(off, min(end, f.size))
	if err != nil {
		f.t.Error(err)
	}
	var terms []any
	fetches := map[string]any{}
	for _, t := range list {
		name := fmt.Sprint("xorb", t.Xorb)
		address := fmt.Sprintf("https://cdn.test/%d?range=%d-%d", t.Xorb, t.Bytes.Start, t.Bytes.End-1)
		terms = append(terms, map[string]any{"hash": name, "unpacked_length": t.Length, "range": pair(t.Chunks.Start, t.Chunks.End)})
		one := map[string]any{"range": pair(t.Chunks.Start, t.Chunks.End), "url": address, "url_range": pair(t.Bytes.Start, t.Bytes.End-1)}
		if version == "v2" {
			one = map[string]any{"url": address, "ranges": []any{map[string]any{"chunks": one["range"], "bytes": one["url_range"]}}}
		}
		fetches[name] = []any{one}
	}
	d := map[string]any{"offset_into_first_range": skip, "terms": terms, "fetch_info": fetches}
	if version == "v2" {
		delete(d, "fetch_info")
		d["xorbs"] = fetches
	}
	if f.plan != nil {
		f.plan(d)
	}
	text, err := json.Marshal(d)
	if err != nil {
		f.t.Error(err)
	}
	return text
}

func pair(start, end int64) map[string]any { return map[string]any{"start": start, "end": end} }

func (f *fake) xorb(r *http.Request, answer *http.Response, first, end int64) []byte {
	var x int64
	if _, err := fmt.Sscanf(r.URL.Path, "/%d", &x); err != nil || r.Header.Get("Authorization") != "" || r.URL.Query().Get("range") != fmt.Sprintf("%d-%d", first, end-1) {
		f.t.Errorf("%s with %v", r.URL, r.Header)
	}
	f.asked = append(f.asked, fmt.Sprintf("xorb %d %d-%d", x, first, end))
	size, err1 := f.layout.Size(x)
	b, err2 := f.layout.Open(x)
	if err := errors.Join(err1, err2); err != nil {
		f.t.Fatal(err)
	}
	p := make([]byte, min(end, size)-first)
	if n, err := b.ReadAt(p, first); n < len(p) {
		f.t.Error(err)
	}
	answer.StatusCode = http.StatusPartialContent
	answer.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+int64(len(p))-1, size))
	return p
}

func (f *fake) read(off, n int64) ([]byte, error) {
	r, err := f.client().Open(f.t.Context(), token(), hash, off, n, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// example is bytes that every scheme makes smaller in places, and no multiple of anything.
func example(n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{5}).Read(data)
	for i := range data {
		if i/64%2 == 0 || i%4 == 3 {
			data[i] = byte(i / 1024)
		}
	}
	return data
}

var mixed = []xorb.Scheme{xorb.Plain, xorb.LZ4, xorb.ByteGroups}

// TestRead reads ranges around every edge of chunks and xorbs, in both versions, in reads of all sizes.
func TestRead(t *testing.T) {
	data := example(1000*7 + 3)
	edges := []int64{0, 1, 2, 999, 1000, 1001, 1999, 2999, 3000, 3001, 5999, 6000, 6001, 7000, 7002}
	for _, v1 := range []bool{false, true} {
		f := serve(t, data, xorb.Config{Chunk: 1000, Chunks: 3, Schemes: mixed})
		f.v1 = v1
		for _, off := range edges {
			for _, end := range append(edges, 7003) {
				if end <= off {
					continue
				}
				got, err := f.read(off, end-off)
				if err != nil || !bytes.Equal(got, data[off:end]) {
					t.Fatalf("%d to %d: %d bytes, %v", off, end, len(got), err)
				}
			}
		}
		for _, size := range []int{1, 7, 500, 1000, 1001, 5000} {
			r, err := f.client().Open(t.Context(), token(), hash, 500, 6000, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for buf := make([]byte, size); ; {
				n, err := r.Read(buf)
				if got = append(got, buf[:n]...); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			r.Close()
			if !bytes.Equal(got, data[500:6500]) {
				t.Errorf("in reads of %d bytes: %d bytes", size, len(got))
			}
		}
	}
}

// TestRequests asks for what is wanted and no more, and asks a store that does not know version 2 only once.
func TestRequests(t *testing.T) {
	data := example(5000)
	f := serve(t, data, xorb.Config{Chunk: 1000, Chunks: 3})
	if _, err := f.read(1500, 2000); err != nil {
		t.Fatal(err)
	}
	if want := []string{"v2 1500-3500", "xorb 0 1008-3024", "xorb 1 0-1008"}; !slices.Equal(f.asked, want) {
		t.Errorf("%q, want %q", f.asked, want)
	}
	for _, status := range []int{http.StatusNotFound, http.StatusNotImplemented} {
		f.asked, f.v1, f.missing = nil, true, status
		c := f.client()
		for range 2 {
			r, err := c.Open(t.Context(), token(), hash, 0, 10, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
		if want := []string{"v2 0-10", "v1 0-10", "v1 0-10"}; !slices.Equal(f.asked, want) {
			t.Errorf("%q, want %q", f.asked, want)
		}
	}
}

// TestWindows plans a long range piece by piece.
func TestWindows(t *testing.T) {
	data := example(12_345)
	f := serve(t, data, xorb.Config{Chunk: 1000, Chunks: 3})
	f.small = true
	got, err := f.read(100, 12_245)
	if err != nil || !bytes.Equal(got, data[100:]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	plans := slices.DeleteFunc(f.asked, func(s string) bool { return strings.HasPrefix(s, "xorb") })
	if want := []string{"v2 100-5100", "v2 5100-10100", "v2 10100-12345"}; !slices.Equal(plans, want) {
		t.Errorf("%q, want %q", plans, want)
	}
}

// TestTermsThatRepeat are those of a file that has the same chunks several times: forwards, backwards and within
// a range that has more than they need.
func TestTermsThatRepeat(t *testing.T) {
	data := example(6000)
	f := serve(t, data, xorb.Config{Chunk: 1000, Schemes: mixed})
	size, err := f.layout.Size(0)
	if err != nil {
		t.Fatal(err)
	}
	chunks := [][2]int64{{2, 3}, {3, 5}, {0, 1}, {0, 1}, {5, 6}, {1, 4}}
	var want []byte
	f.plan = func(d map[string]any) {
		var terms []any
		for _, c := range chunks {
			terms = append(terms, map[string]any{"hash": "xorb0", "unpacked_length": 1000 * (c[1] - c[0]), "range": pair(c[0], c[1])})
		}
		d["terms"] = terms
		all := map[string]any{"chunks": pair(0, 6), "bytes": pair(0, size-1)}
		d["xorbs"] = map[string]any{"xorb0": []any{map[string]any{"url": fmt.Sprintf("https://cdn.test/0?range=0-%d", size-1), "ranges": []any{all}}}}
	}
	for _, c := range chunks {
		want = append(want, data[1000*c[0]:1000*c[1]]...)
	}
	got, err := f.read(0, int64(len(want)))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v, want %d", len(got), err, len(want))
	}
	if n := len(f.asked); n != 1+4 {
		t.Errorf("%d requests: %q", n, f.asked)
	}
}

// TestAlive says of every arrival that it came, also of bytes that are read for nothing.
func TestAlive(t *testing.T) {
	f := serve(t, example(6000), xorb.Config{Chunk: 1000})
	f.plan = func(d map[string]any) {
		first(d, "terms")["range"], first(d, "terms")["unpacked_length"] = pair(5, 6), 1000
		piece(d)["url"] = "https://cdn.test/0?range=0-6047"
		ranges(d)["chunks"], ranges(d)["bytes"] = pair(0, 6), pair(0, 6047)
	}
	count := 0
	r, err := f.client().Open(t.Context(), token(), hash, 0, 1000, func() { count++ })
	if err != nil || count != 1 {
		t.Fatalf("%d times for the plan, %v", count, err)
	}
	defer r.Close()
	if _, err := r.Read(make([]byte, 1000)); err != nil || count < 1+1+12 {
		t.Errorf("%d times for a plan, an answer, and header and body of six chunks; %v", count, err)
	}
}
