package xet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// FuzzPlan: a plan that is taken has what was asked for, and nothing in it is out of bounds.
func FuzzPlan(f *testing.F) {
	f.Add([]byte(`{"offset_into_first_range":5,"terms":[{"hash":"x","unpacked_length":20,"range":{"start":0,"end":2}}],"xorbs":{"x":[{"url":"https://h/x","ranges":[{"chunks":{"start":0,"end":2},"bytes":{"start":0,"end":40}}]}]}}`), int64(15))
	f.Add([]byte(`{"offset_into_first_range":0,"terms":[{"hash":"x","unpacked_length":20,"range":{"start":1,"end":2}}],"fetch_info":{"x":[{"range":{"start":0,"end":2},"url":"https://h/x","url_range":{"start":0,"end":40}}]}}`), int64(20))
	f.Fuzz(func(t *testing.T, data []byte, n int64) {
		if n <= 0 || n > window {
			return
		}
		p, err := parsePlan(data, n)
		if err != nil {
			if !errors.As(err, new(*MalformedError)) {
				t.Errorf("%v", err)
			}
			return
		}
		sum := -p.skip
		for i, one := range p.terms {
			if sum >= n || one.length <= 0 || one.chunks.len() <= 0 || one.chunks.start < one.from.chunks.start || one.chunks.end > one.from.chunks.end || one.from.bytes.len() <= 0 {
				t.Errorf("term %d: %+v of %+v", i, one, *one.from)
			}
			sum += one.length
		}
		if p.skip < 0 || p.skip >= p.terms[0].length || sum < n {
			t.Errorf("skip %d, %d of %d bytes", p.skip, sum, n)
		}
	})
}

// FuzzXorb reads any bytes as a xorb of two chunks: what comes has the length that was asked for, or is an error.
func FuzzXorb(f *testing.F) {
	data := example(1000)
	f.Add(append(chunk(0, plain, 500, data[:500]), chunk(0, lz4Frame, 500, frame(data[500:]))...), uint16(1000))
	f.Add(append(chunk(0, byteGroups, 999, frame(data[:999])), chunk(0, plain, 1, data[:1])...), uint16(1000))
	f.Fuzz(func(t *testing.T, body []byte, length uint16) {
		n := len(body)
		if n < 18 || n > 200_000 || length < 2 {
			return
		}
		s := serve(t, data, xorb.Config{Chunk: 1000})
		s.plan = func(d map[string]any) {
			first(d, "terms")["range"], first(d, "terms")["unpacked_length"] = pair(0, 2), length
			piece(d)["url"] = fmt.Sprintf("https://cdn.test/0?range=0-%d", n-1)
			ranges(d)["chunks"], ranges(d)["bytes"] = pair(0, 2), pair(0, int64(n)-1)
		}
		s.edit = func(r *http.Response) {
			if r.Request.URL.Host == "cdn.test" {
				r.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/*", n-1))
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
		}
		got, err := s.read(0, int64(length))
		if err == nil && len(got) != int(length) || len(got) > int(length) {
			t.Errorf("%d bytes of %d, %v", len(got), length, err)
		}
		if err != nil && !errors.As(err, new(*MalformedError)) {
			t.Errorf("%v", err)
		}
	})
}

// FuzzUngroup: what was taken apart is put together.
func FuzzUngroup(f *testing.F) {
	f.Add([]byte("0123012"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var grouped []byte
		for plane := range 4 {
			for i := plane; i < len(data); i += 4 {
				grouped = append(grouped, data[i])
			}
		}
		got := make([]byte, len(data))
		if ungroup(got, grouped); !bytes.Equal(got, data) {
			t.Errorf("%q, want %q", got, data)
		}
	})
}
