package xet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// first returns the first element of a list in a plan.
func first(d map[string]any, list string) map[string]any { return d[list].([]any)[0].(map[string]any) }

// piece returns what can be fetched of the first xorb.
func piece(d map[string]any) map[string]any {
	return d["xorbs"].(map[string]any)["xorb0"].([]any)[0].(map[string]any)
}

func ranges(d map[string]any) map[string]any { return first(piece(d), "ranges") }

// TestPlansThatLie: each is an error of its own, before a byte is fetched or when the bytes tell.
func TestPlansThatLie(t *testing.T) {
	many := func(n int, one any) []any {
		list := make([]any, n)
		for i := range list {
			list[i] = one
		}
		return list
	}
	for name, c := range map[string]struct {
		plan func(d map[string]any)
		want string
	}{
		"no terms":               {func(d map[string]any) { d["terms"] = []any{} }, "lacks"},
		"no skip":                {func(d map[string]any) { delete(d, "offset_into_first_range") }, "lacks"},
		"no xorbs":               {func(d map[string]any) { delete(d, "xorbs") }, "lacks"},
		"another type":           {func(d map[string]any) { d["terms"] = "none" }, "no JSON of a plan"},
		"skip below 0":           {func(d map[string]any) { d["offset_into_first_range"] = -1 }, "begins at byte -1"},
		"skip over the term":     {func(d map[string]any) { d["offset_into_first_range"] = 3000 }, "begins at byte 3000"},
		"skip as large as can":   {func(d map[string]any) { d["offset_into_first_range"] = int64(math.MaxInt64) }, "begins at byte"},
		"too little":             {func(d map[string]any) { d["terms"] = d["terms"].([]any)[:1] }, "has 2500 bytes of the 4000"},
		"too much":               {func(d map[string]any) { d["terms"] = append(d["terms"].([]any), first(d, "terms")) }, "more terms than"},
		"the whole file":         {func(d map[string]any) { d["terms"] = many(9, first(d, "terms")) }, "more terms than"},
		"more terms than bytes":  {func(d map[string]any) { d["terms"] = many(maxTerms+1, map[string]any{"range": pair(0, 1)}) }, "16385 terms"},
		"a term of no length":    {func(d map[string]any) { delete(first(d, "terms"), "unpacked_length") }, "without a length"},
		"a term of 0 bytes":      {func(d map[string]any) { first(d, "terms")["unpacked_length"] = 0 }, "3 chunks with 0 bytes"},
		"a term of -1 bytes":     {func(d map[string]any) { first(d, "terms")["unpacked_length"] = -1 }, "3 chunks with -1 bytes"},
		"a term of too many":     {func(d map[string]any) { first(d, "terms")["unpacked_length"] = 3*maxChunk + 1 }, "3 chunks with"},
		"a term of 2^63 bytes":   {func(d map[string]any) { first(d, "terms")["unpacked_length"] = int64(math.MaxInt64) }, "3 chunks with"},
		"a term of one less":     {func(d map[string]any) { first(d, "terms")["unpacked_length"] = 2999; cut(d) }, "more than the 2999"},
		"a term of one more":     {func(d map[string]any) { first(d, "terms")["unpacked_length"] = 3001 }, "not the 3001"},
		"chunks backwards":       {func(d map[string]any) { first(d, "terms")["range"] = pair(3, 0) }, "range of chunks"},
		"no chunks":              {func(d map[string]any) { first(d, "terms")["range"] = pair(1, 1) }, "range of chunks"},
		"chunks below 0":         {func(d map[string]any) { first(d, "terms")["range"] = pair(-1, 2) }, "range of chunks"},
		"too many chunks":        {func(d map[string]any) { first(d, "terms")["range"] = pair(0, maxChunks+1) }, "range of chunks"},
		"half a range":           {func(d map[string]any) { first(d, "terms")["range"] = map[string]any{"end": 3} }, "range of chunks"},
		"a xorb that is nowhere": {func(d map[string]any) { first(d, "terms")["hash"] = "none" }, "names no URL"},
		"chunks that are nowhere": {func(d map[string]any) {
			ranges(d)["chunks"], ranges(d)["bytes"] = pair(0, 2), pair(0, 2015)
		}, "names no URL"},
		"no URL":            {func(d map[string]any) { piece(d)["url"] = "" }, "not at a web address"},
		"a file":            {func(d map[string]any) { piece(d)["url"] = "file:///etc/passwd" }, "not at a web address"},
		"a password":        {func(d map[string]any) { piece(d)["url"] = "https://a:b@cdn.test/0" }, "not at a web address"},
		"http":              {func(d map[string]any) { piece(d)["url"] = "http://cdn.test/0" }, "from https to http"},
		"bytes backwards":   {func(d map[string]any) { ranges(d)["bytes"] = pair(10, 9) }, "without a range"},
		"bytes below 0":     {func(d map[string]any) { ranges(d)["bytes"] = pair(-1, 100) }, "without a range"},
		"too many bytes":    {func(d map[string]any) { ranges(d)["bytes"] = pair(0, maxFetch) }, "without a range"},
		"too few bytes":     {func(d map[string]any) { ranges(d)["bytes"] = pair(0, 25) }, "3 chunks in 26 bytes"},
		"more bytes":        {func(d map[string]any) { ranges(d)["bytes"] = pair(0, 3*(headerSize+maxPacked)) }, "3 chunks in"},
		"no range of bytes": {func(d map[string]any) { delete(ranges(d), "bytes") }, "without a range"},
		"ranges that contradict": {func(d map[string]any) {
			piece(d)["ranges"] = append(piece(d)["ranges"].([]any), map[string]any{"chunks": pair(3, 4), "bytes": pair(100, 2000)})
		}, "contradict"},
		"ranges in another order": {func(d map[string]any) {
			piece(d)["ranges"] = append(piece(d)["ranges"].([]any), map[string]any{"chunks": pair(1, 4), "bytes": pair(1, 2000)}, map[string]any{"chunks": pair(2, 4), "bytes": pair(0, 2000)})
		}, "contradict"},
		"too many URLs": {func(d map[string]any) { piece(d)["ranges"] = many(maxTerms+1, ranges(d)) }, "more than 16384 URLs"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, example(5000), xorb.Config{Chunk: 1000, Chunks: 3})
			f.plan = c.plan
			_, err := f.read(500, 4000)
			var malformed *MalformedError
			if !errors.As(err, &malformed) || !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// cut takes away what a term of one byte less would make too little.
func cut(d map[string]any) {
	second := d["terms"].([]any)[1].(map[string]any)
	second["unpacked_length"] = 1999
}

// chunk makes a chunk of any header.
func chunk(version, scheme byte, length int, body []byte) []byte {
	n := len(body)
	return append([]byte{version, byte(n), byte(n >> 8), byte(n >> 16), scheme, byte(length), byte(length >> 8), byte(length >> 16)}, body...)
}

func frame(data []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// TestXorbsThatLie has one chunk of 1000 bytes in a range of as many as its body has.
func TestXorbsThatLie(t *testing.T) {
	data := example(1000)
	bomb := frame(make([]byte, 16<<20))
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"version 1":          {chunk(1, plain, 1000, data), "version 1"},
		"scheme 3":           {chunk(0, 3, 1000, data), "not known (3)"},
		"length 0":           {chunk(0, plain, 0, data), "a chunk of 0 bytes"},
		"above 128 KiB":      {chunk(0, lz4Frame, maxChunk+1, frame(data)), "a chunk of 131073 bytes"},
		"as large as can":    {chunk(0, lz4Frame, 1<<24-1, frame(data)), "a chunk of 16777215 bytes"},
		"two lengths":        {chunk(0, plain, 999, data), "a chunk of 999 bytes is packed in 1000"},
		"no LZ4":             {chunk(0, lz4Frame, 1000, data), "cannot be unpacked"},
		"fewer bytes":        {chunk(0, lz4Frame, 1000, frame(data[:999])), "cannot be unpacked"},
		"more bytes":         {chunk(0, lz4Frame, 1000, frame(append(data, 0))), "more bytes in it"},
		"two frames":         {chunk(0, lz4Frame, 1000, append(frame(data), frame(data)...)), "more bytes in it"},
		"after the frame":    {chunk(0, lz4Frame, 1000, append(frame(data), 0)), "more bytes in it"},
		"half a frame":       {chunk(0, byteGroups, 1000, frame(data)[:300]), "cannot be unpacked"},
		"a bomb":             {chunk(0, lz4Frame, 1000, bomb[:min(len(bomb), maxPacked)]), ""},
		"another length":     {chunk(0, plain, 999, data[:999]), "have 999 bytes, not the 1000"},
		"longer":             {chunk(0, plain, 1001, append(data, 0)), "more than the 1000"},
		"bytes after it":     {append(chunk(0, plain, 1000, data), 0), "end 1 bytes before"},
		"over the end":       {chunk(0, plain, 1000, data)[:1007], "ends behind the range"},
		"packed in too many": {chunk(0, lz4Frame, 1000, make([]byte, maxPacked+1)), "1 chunks in 132105 bytes"},
		"packed in nothing":  {append(chunk(0, lz4Frame, 1000, nil), frame(data)...), "is packed in 0"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, data, xorb.Config{Chunk: 1000})
			f.plan = func(d map[string]any) {
				n := len(c.body)
				piece(d)["url"] = fmt.Sprintf("https://cdn.test/0?range=0-%d", n-1)
				ranges(d)["bytes"] = pair(0, int64(n)-1)
			}
			f.edit = func(r *http.Response) {
				if r.Request.URL.Host == "cdn.test" {
					r.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/*", len(c.body)-1))
					r.Body = io.NopCloser(bytes.NewReader(c.body))
				}
			}
			got, err := f.read(0, 1000)
			var malformed *MalformedError
			if !errors.As(err, &malformed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d bytes, %v, want %q", len(got), err, c.want)
			}
		})
	}
}

// TestAnswers are those that are about something else, or end early.
func TestAnswers(t *testing.T) {
	lost := errors.New("connection lost")
	for name, c := range map[string]struct {
		edit func(*http.Response)
		want string // "" for no error
	}{
		"another range": {func(r *http.Response) { r.Header.Set("Content-Range", "bytes 1-3024/3024") }, `another range ("bytes 1-3024/3024")`},
		"no range":      {func(r *http.Response) { r.Header.Del("Content-Range") }, "another range"},
		"gzip":          {func(r *http.Response) { r.Header.Set("Content-Encoding", "gzip") }, `Content-Encoding "gzip"`},
		"all of it":     {func(r *http.Response) { r.StatusCode = http.StatusOK; r.Header.Del("Content-Range") }, ""},
		"too much":      {func(r *http.Response) { r.StatusCode = http.StatusOK; r.ContentLength++ }, "with all it has"},
		"a redirect":    {func(r *http.Response) { r.StatusCode = http.StatusFound }, "status 302"},
		"expired":       {func(r *http.Response) { r.StatusCode = http.StatusForbidden }, "cdn.test answers with status 403"},
		"cut":           {func(r *http.Response) { r.Body = io.NopCloser(io.LimitReader(r.Body, 1500)) }, "unexpected EOF"},
		"lost": {func(r *http.Response) {
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 1500), iotest.ErrReader(lost)))
		}, "connection lost"},
	} {
		t.Run(name, func(t *testing.T) {
			data := example(3000)
			f := serve(t, data, xorb.Config{Chunk: 1000})
			f.edit = func(r *http.Response) {
				if r.Request.URL.Host == "cdn.test" {
					c.edit(r)
				}
			}
			got, err := f.read(0, 3000)
			if c.want == "" && (err != nil || !bytes.Equal(got, data)) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%d bytes, %v, want %q", len(got), err, c.want)
			}
			if !bytes.HasPrefix(data, got) {
				t.Error("what was read before the error is not the file's")
			}
		})
	}
}

// TestOver refuses a store that sends much for little.
func TestOver(t *testing.T) {
	f := serve(t, example(3000), xorb.Config{Chunk: 1000})
	f.small = true
	f.plan = func(d map[string]any) {
		one := map[string]any{"hash": "xorb0", "unpacked_length": 1000, "range": pair(2, 3)}
		d["terms"] = []any{one, one, one}
	}
	if got, err := f.read(0, 3000); err == nil || !strings.Contains(err.Error(), "leads over more than 5000 bytes") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestParseToken(t *testing.T) {
	header := func(access, exp, cas string) http.Header {
		return http.Header{"X-Xet-Access-Token": {access}, "X-Xet-Token-Expiration": {exp}, "X-Xet-Cas-Url": {cas}}
	}
	for name, c := range map[string]struct {
		header http.Header
		body   string
		want   string // of the store; "" for an error
	}{
		"headers":         {header("a", "17", "https://cas.test"), "", "https://cas.test"},
		"JSON":            {header("a", "", "https://cas.test"), `{"accessToken":"b","exp":17,"casUrl":"https://json.test/x"}`, "https://json.test/x"},
		"neither":         {header("", "", ""), `<html>`, ""},
		"empty JSON":      {nil, `{}`, ""},
		"no store":        {header("a", "17", "nonsense"), "", ""},
		"a file":          {header("a", "17", "file:///x"), "", ""},
		"a password":      {header("a", "17", "https://a:b@cas.test"), "", ""},
		"a query":         {header("a", "17", "https://cas.test/?x=y"), "", ""},
		"no time":         {header("a", "soon", "https://cas.test"), "", ""},
		"before all time": {header("a", "-1", "https://cas.test"), "", ""},
		"a line break":    {nil, `{"accessToken":"b\nHost: x","exp":17,"casUrl":"https://json.test"}`, ""},
	} {
		got, err := ParseToken(c.header, []byte(c.body))
		if (err == nil) != (c.want != "") || err == nil && (got.CAS.String() != c.want || !got.Expires.Equal(time.Unix(17, 0))) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if err != nil && !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
