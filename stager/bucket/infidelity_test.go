package bucket_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"cloud.google.com/go/storage"
	"google.golang.org/api/option"

	"github.com/headstart-serving/headstart/manifest"
)

// The tests in this file are named after what fake-gcs-server v1.56.1 does otherwise than the
// service. Each of them fails there.

func TestReadsHonourPreconditions(t *testing.T) {
	for _, road := range []struct {
		name    string
		options []option.ClientOption
	}{{"xml", nil}, {"json", []option.ClientOption{storage.WithJSONReads()}}} {
		t.Run(road.name, func(t *testing.T) {
			h := start(t, t.TempDir(), road.options...)
			o := h.object("a")
			g := put(t, o, []byte("one")).Generation
			for _, c := range []struct {
				cond storage.Conditions
				want int
			}{
				{storage.Conditions{GenerationMatch: g}, 0},
				{storage.Conditions{GenerationMatch: g + 1}, 412},
				{storage.Conditions{MetagenerationMatch: 1}, 0},
				{storage.Conditions{MetagenerationMatch: 2}, 412},
			} {
				r, err := o.If(c.cond).NewReader(t.Context())
				if status(err) != c.want || (err == nil) != (c.want == 0) {
					t.Errorf("%+v: %v", c.cond, err)
				}
				if err == nil {
					r.Close()
				}
			}
			if _, err := o.Generation(g + 1).NewReader(t.Context()); !errors.Is(err, storage.ErrObjectNotExist) {
				t.Errorf("another generation: %v", err)
			}
		})
	}
}

func TestAttrsAndDeleteHonourPreconditions(t *testing.T) {
	h := start(t, t.TempDir())
	o := h.object("a")
	g := put(t, o, []byte("one")).Generation
	if _, err := o.If(storage.Conditions{GenerationMatch: g + 1}).Attrs(t.Context()); status(err) != 412 {
		t.Errorf("attrs: %v", err)
	}
	if err := o.If(storage.Conditions{GenerationMatch: g + 1}).Delete(t.Context()); status(err) != 412 {
		t.Errorf("delete: %v", err)
	}
	if err := o.If(storage.Conditions{MetagenerationMatch: 7}).Delete(t.Context()); status(err) != 412 {
		t.Errorf("delete: %v", err)
	}
	if got := get(t, o, 0, -1); string(got) != "one" {
		t.Fatalf("the object is gone: %q", got)
	}
	if err := o.If(storage.Conditions{GenerationMatch: g}).Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := o.Delete(t.Context()); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("second delete: %v", err)
	}
}

func TestComposeHonoursEverything(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	ctx := t.Context()
	a, b, dst := h.object("a"), h.object("b"), h.object("whole")
	one, two := pattern(300<<10), pattern(5)
	ga := put(t, a, one).Generation
	gb := put(t, b, two).Generation
	compose := func(dst *storage.ObjectHandle, crc *uint32, src ...*storage.ObjectHandle) (*storage.ObjectAttrs, error) {
		c := dst.ComposerFrom(src...)
		c.ContentType = "x/y"
		if crc != nil {
			c.CRC32C, c.SendCRC32C = *crc, true
		}
		return c.Run(ctx)
	}
	sum := crc32.Checksum(append(bytes.Clone(one), two...), manifest.Castagnoli)
	wrong := sum + 1
	for _, c := range []struct {
		what string
		run  func() error
		want int
	}{
		{"destination must not exist, but source does", func() error { _, err := compose(a.If(storage.Conditions{DoesNotExist: true}), nil, a, b); return err }, 412},
		{"destination at another generation", func() error {
			_, err := compose(a.If(storage.Conditions{GenerationMatch: ga + 1}), nil, a, b)
			return err
		}, 412},
		{"source generation", func() error { _, err := compose(dst, nil, a.Generation(ga+1), b); return err }, 404},
		{"source precondition", func() error {
			_, err := compose(dst, nil, a.If(storage.Conditions{GenerationMatch: ga + 1}), b)
			return err
		}, 412},
		{"missing source", func() error { _, err := compose(dst, nil, a, h.object("no")); return err }, 404},
		{"wrong crc32c", func() error { _, err := compose(dst, &wrong, a, b); return err }, 400},
	} {
		if err := c.run(); status(err) != c.want {
			t.Errorf("%s: %v, want %d", c.what, err, c.want)
		}
	}
	if got := names(t, h, nil); got != "a b" {
		t.Fatalf("objects after refused composes: %s", got)
	}
	attrs, err := compose(dst.If(storage.Conditions{DoesNotExist: true}), &sum, a.Generation(ga), b.If(storage.Conditions{GenerationMatch: gb}))
	if err != nil {
		t.Fatal(err)
	}
	if len(attrs.MD5) > 0 || attrs.CRC32C != sum || attrs.Size != int64(len(one)+len(two)) || attrs.ComponentCount != 2 || attrs.ContentType != "x/y" {
		t.Errorf("composite: md5 %x, crc32c %x, size %d, components %d, type %s", attrs.MD5, attrs.CRC32C, attrs.Size, attrs.ComponentCount, attrs.ContentType)
	}
	if got := get(t, dst, 0, -1); !bytes.Equal(got, append(bytes.Clone(one), two...)) {
		t.Error("composite bytes differ")
	}
	// By hand: the client would mend an answer that breaks off at the seam.
	seam := h.ask(t, "GET", "/models/whole", nil, fmt.Sprintf("Range: bytes=%d-%d", len(one)-1, len(one)+1)).want(t, 206)
	if seam.err != nil || !bytes.Equal(seam.body, []byte{one[len(one)-1], two[0], two[1]}) {
		t.Errorf("range over the seam: %x, %v", seam.body, seam.err)
	}
	// A composite of composites counts all components, and outlives its sources.
	attrs, err = compose(dst, nil, dst, dst, b)
	if err != nil || attrs.ComponentCount != 5 {
		t.Fatalf("composite of composites: %+v, %v", attrs, err)
	}
	for _, o := range []*storage.ObjectHandle{a, b} {
		if err := o.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	whole := append(append(append(bytes.Clone(one), two...), one...), two...)
	if got := get(t, dst, 0, -1); !bytes.Equal(got, append(whole, two...)) {
		t.Error("composite of composites differs")
	}
	if got := leftovers(t, dir); got != "models/blobs 2, models/objects 1, models/uploads 2" && got != "models/blobs 2, models/objects 1" {
		t.Errorf("left on disk: %s", got)
	}
}

func TestComposeLimitAndDeleteSources(t *testing.T) {
	h := start(t, t.TempDir())
	var sources []string
	for i := range 33 {
		h.upload(t, fmt.Sprint("p", i), []byte{byte(i)})
		sources = append(sources, fmt.Sprintf(`{"name":"p%d"}`, i))
	}
	path := "/storage/v1/b/models/o/all/compose"
	body := func(n int) []byte {
		return []byte(`{"sourceObjects":[` + strings.Join(sources[:n], ",") + `],"deleteSourceObjects":true}`)
	}
	r := h.ask(t, "POST", path, body(33)).want(t, 400).resource(t)
	if r.Error.Errors[0].Reason != "invalid" || !strings.Contains(r.Error.Message, "(33) exceeds the maximum (32)") {
		t.Errorf("%+v", r.Error)
	}
	h.ask(t, "POST", path, body(0)).want(t, 400)
	if r := h.ask(t, "POST", path, body(32)).want(t, 200).resource(t); r.ComponentCount != 32 || r.Size != "32" || r.MD5Hash != "" {
		t.Errorf("%+v", r)
	}
	if got := names(t, h, nil); got != "all p32" {
		t.Errorf("left: %s", got)
	}
}

// A chunk whose answer was lost is sent again by the client; it must be stored once.
func TestRetriedChunkIsStoredOnce(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(640000)
	u := h.begin(t, "a")
	h.chunk(t, u, data, 0, 262144, "*").want(t, 308)
	h.chunk(t, u, data, 0, 262144, "*").want(t, 308) // the same again
	h.chunk(t, u, data, 0, 524288, "*").want(t, 308) // and with more behind it
	h.chunk(t, u, data, 262144, 640000, "640000").want(t, 200)
	if got := get(t, h.object("a"), 0, -1); !bytes.Equal(got, data) {
		t.Errorf("stored %d bytes", len(got))
	}
}

// losing does requests and loses the answers of some.
type losing struct {
	http.RoundTripper
	lose func(*http.Request) bool
}

func (l losing) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil && l.lose(r) {
		resp.Body.Close()
		return nil, io.ErrUnexpectedEOF
	}
	return resp, err
}

func TestClientWhoseAnswersAreLost(t *testing.T) {
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	lost := map[string]bool{}
	h := start(t, t.TempDir(), option.WithHTTPClient(&http.Client{Transport: losing{tr, func(r *http.Request) bool {
		span := r.Header.Get("Content-Range")
		if span == "" || lost[span] {
			return false
		}
		lost[span] = true
		return true
	}}}))
	data := pattern(640000)
	w := h.object("a").If(storage.Conditions{DoesNotExist: true}).NewWriter(t.Context())
	w.ChunkSize = 256 << 10
	if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if len(lost) != 3 {
		t.Errorf("lost the answers to %v", lost)
	}
	if got := get(t, h.object("a"), 0, -1); !bytes.Equal(got, data) {
		t.Errorf("stored %d bytes", len(got))
	}
}

func TestDeclaredHashIsKeptToTheLastChunk(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	data := pattern(600 << 10)
	good := crc32.Checksum(data, manifest.Castagnoli)
	for _, c := range []struct {
		sum uint32
		ok  bool
	}{{good, true}, {good + 1, false}} {
		for _, chunk := range []int{0, 256 << 10, 16 << 20} {
			o := fmt.Sprintf("%v-%d", c.ok, chunk)
			w := h.object(o).NewWriter(t.Context())
			w.ChunkSize, w.CRC32C, w.SendCRC32C = chunk, c.sum, true
			_, err := io.Copy(w, bytes.NewReader(data))
			if err := errors.Join(err, w.Close()); (err == nil) != c.ok || !c.ok && status(err) != 400 {
				t.Errorf("%s: %v", o, err)
			}
		}
	}
	if got := names(t, h, nil); strings.Contains(got, "false") {
		t.Errorf("stored in spite of a wrong hash: %s", got)
	}
	// The final request's X-Goog-Hash counts too.
	u := h.begin(t, "late")
	h.chunk(t, u, data, 0, 512<<10, "*").want(t, 308)
	h.chunk(t, u, data, 512<<10, 600<<10, "614400", "X-Goog-Hash: crc32c=AAAAAA==").want(t, 400)
	u = h.begin(t, "late")
	h.chunk(t, u, data, 0, 600<<10, "614400", "X-Goog-Hash: md5=AAAAAAAAAAAAAAAAAAAAAA==").want(t, 400)
	h.ask(t, "PUT", "/models/late", data, "X-Goog-Hash: crc32c=AAAAAA==").want(t, 400)
	h.ask(t, "PUT", "/models/late", data, "Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==").want(t, 400)
	h.ask(t, "GET", "/models/late", nil).want(t, 404)
	if got := leftovers(t, dir); !strings.Contains(got, "models/blobs 3,") {
		t.Errorf("refused uploads left bytes: %s", got)
	}
}

func TestStatusProbeDoesNotCommit(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(512 << 10)
	u := h.begin(t, "a")
	for _, probe := range []string{"bytes */*", "bytes */524288"} {
		if a := h.ask(t, "PUT", u, nil, "Content-Range: "+probe).want(t, 308); a.header.Get("Range") != "" {
			t.Errorf("range %q of an empty upload", a.header.Get("Range"))
		}
	}
	h.chunk(t, u, data, 0, 256<<10, "*").want(t, 308)
	for _, probe := range []string{"bytes */*", "bytes */524288"} {
		if a := h.ask(t, "PUT", u, nil, "Content-Range: "+probe).want(t, 308); a.header.Get("Range") != "bytes=0-262143" {
			t.Errorf("range %q", a.header.Get("Range"))
		}
	}
	h.ask(t, "GET", "/models/a", nil).want(t, 404)
	h.chunk(t, u, data, 256<<10, 512<<10, "524288").want(t, 200)
	for range 2 { // asked again, it says what became of it
		if r := h.ask(t, "PUT", u, nil, "Content-Range: bytes */*").want(t, 200).resource(t); r.Size != "524288" {
			t.Errorf("%+v", r)
		}
	}
}

func TestCancelledUploadIsGone(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	data := pattern(512 << 10)
	u := h.begin(t, "a")
	h.chunk(t, u, data, 0, 256<<10, "*").want(t, 308)
	h.ask(t, "DELETE", u, nil).want(t, 499)
	h.chunk(t, u, data, 256<<10, 512<<10, "524288").want(t, 404)
	h.ask(t, "PUT", u, nil, "Content-Range: bytes */*").want(t, 404)
	h.ask(t, "DELETE", u, nil).want(t, 404)
	if got := leftovers(t, dir); got != "" {
		t.Errorf("left on disk: %s", got)
	}
}

// Storing 64 MiB must not take 64 MiB of memory.
func TestContentIsNotKeptInMemory(t *testing.T) {
	h := start(t, t.TempDir())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w := h.object("big").NewWriter(t.Context())
	w.ChunkSize = 256 << 10
	for range 64 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestMetagenerations(t *testing.T) {
	h := start(t, t.TempDir())
	o, ctx := h.object("a"), context.Background()
	put(t, o, []byte("one"))
	a, err := o.If(storage.Conditions{MetagenerationMatch: 1}).Update(ctx, storage.ObjectAttrsToUpdate{ContentType: "x/y", Metadata: map[string]string{"k": "v"}})
	if err != nil || a.Metageneration != 2 || a.ContentType != "x/y" || a.Metadata["k"] != "v" {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := o.If(storage.Conditions{MetagenerationMatch: 1}).Update(ctx, storage.ObjectAttrsToUpdate{ContentType: "z"}); status(err) != 412 {
		t.Errorf("second update: %v", err)
	}
	if a := put(t, o, []byte("two")); a.Metageneration != 1 || a.Metadata != nil {
		t.Errorf("a new generation inherits: %+v", a)
	}
}

// XML reads need no configured host name: the bucket is in the path.
func TestXMLReadsWithAnyHostHeader(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	req, err := http.NewRequest("GET", h.URL+"/models/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "storage.example:1234"
	resp, err := h.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// From the reports of others: the committed range was off by one, and a short body was credited with
// the length that its header declared.
func TestCommittedRangeIsWhatIsKept(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(1 << 20)
	u := h.begin(t, "a")
	if a := h.chunk(t, u, data, 0, 300<<10, "*").want(t, 308); a.header.Get("Range") != "bytes=0-262143" {
		t.Errorf("kept %q of 300 KiB", a.header.Get("Range"))
	}
	h.ask(t, "PUT", u, data[256<<10:300<<10], "Content-Range: bytes 262144-786431/1048576").want(t, 400)
	if a := h.ask(t, "PUT", u, nil, "Content-Range: bytes */*").want(t, 308); a.header.Get("Range") != "bytes=0-262143" {
		t.Errorf("credited %q", a.header.Get("Range"))
	}
	var r resource
	if err := json.Unmarshal(h.chunk(t, u, data, 256<<10, 1<<20, "1048576").want(t, 200).body, &r); err != nil || r.Size != "1048576" {
		t.Errorf("%+v %v", r, err)
	}
}
