package bucket_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/storage"

	"github.com/headstart-serving/headstart/stager/bucket"
)

// probe asks how much of an upload is kept.
func (h *host) probe(t testing.TB, url string) string {
	t.Helper()
	return h.ask(t, "PUT", url, nil, "Content-Range: bytes */*").want(t, 308).header.Get("Range")
}

func TestQuanta(t *testing.T) {
	const q = 256 << 10
	for _, n := range []int{q, q + 1, 2*q - 1, 2 * q, 2*q + 1} {
		h := start(t, t.TempDir())
		data := pattern(n + 1)
		u := h.begin(t, "a")
		want := fmt.Sprintf("bytes=0-%d", n/q*q-1)
		if got := h.chunk(t, u, data, 0, n, "*").want(t, 308).header.Get("Range"); got != want {
			t.Errorf("%d bytes: kept %s, want %s", n, got, want)
		}
		if got := h.probe(t, u); got != want {
			t.Errorf("%d bytes: probe says %s, want %s", n, got, want)
		}
		h.chunk(t, u, data, n/q*q, n+1, fmt.Sprint(n+1)).want(t, 200)
		if got := get(t, h.object("a"), 0, -1); !bytes.Equal(got, data) {
			t.Errorf("%d bytes: stored %d", n, len(got))
		}
	}
}

func TestUploadRules(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(1 << 20)
	u := h.begin(t, "a", "X-Upload-Content-Length: 1048576", "X-Upload-Content-Type: x/y")
	a := h.chunk(t, u, data, 0, 1000, "*").want(t, 400)
	if !strings.Contains(string(a.body), "equal or greater than 262144") {
		t.Errorf("%s", a.body)
	}
	a = h.chunk(t, u, data, 256<<10, 512<<10, "*").want(t, 503)
	if !strings.Contains(string(a.body), "exceeds already uploaded size of 0 byte(s)") {
		t.Errorf("%s", a.body)
	}
	h.chunk(t, u, data, 0, 512<<10, "524288").want(t, 400)                                                      // another size than announced
	h.ask(t, "PUT", u, data[:10], "Content-Range: bytes 0-99/1048576").want(t, 400)                             // not what the header says
	h.ask(t, "PUT", u, data[:10], "Content-Range: bytes */1048576").want(t, 400)                                // bytes where there are none
	h.ask(t, "PUT", u, data[:10], "Content-Range: bytes=0-9/10").want(t, 400)                                   // malformed
	h.ask(t, "PUT", u, nil, "Content-Range: bytes */9223372036854775808").want(t, 400)                          // no number
	h.ask(t, "PUT", u, nil, "Content-Range: bytes */6000000000000").want(t, 400)                                // larger than 5 TiB
	h.ask(t, "PUT", u+"x", nil, "Content-Range: bytes */*").want(t, 404)                                        // no such session
	h.ask(t, "PUT", strings.Replace(u, "/models/", "/other/", 1), nil, "Content-Range: bytes */*").want(t, 404) // of no such bucket
	h.chunk(t, u, data, 0, 512<<10, "*").want(t, 308)
	if a := h.chunk(t, u, data, 256<<10, 768<<10, "*", "X-GUploader-No-308: yes").want(t, 200); a.header.Get("X-Http-Status-Code-Override") != "308" || a.header.Get("Range") != "bytes=0-786431" {
		t.Errorf("%v", a.header)
	}
	r := h.chunk(t, u, data, 768<<10, 1<<20, "1048576").want(t, 200).resource(t)
	if r.ContentType != "x/y" || r.Size != "1048576" {
		t.Errorf("%+v", r)
	}
	// The last request again, as from a client that lost the answer: the same object.
	if again := h.chunk(t, u, data, 768<<10, 1<<20, "1048576").want(t, 200).resource(t); again.Generation != r.Generation {
		t.Errorf("generation %s became %s", r.Generation, again.Generation)
	}
}

func TestUploadInOneRequestWithoutRange(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(300000)
	h.ask(t, "PUT", h.begin(t, "a"), data).want(t, 200)
	a, err := h.try("PUT", h.begin(t, "chunked"), io.MultiReader(bytes.NewReader(data))) // no Content-Length
	if err != nil || a.status != 200 {
		t.Fatal(a, err)
	}
	h.ask(t, "PUT", h.begin(t, "empty"), nil, "Content-Range: bytes */0").want(t, 200)
	for o, want := range map[string]int{"a": len(data), "chunked": len(data), "empty": 0} {
		if got := get(t, h.object(o), 0, -1); !bytes.Equal(got, data[:want]) {
			t.Errorf("%s: %d bytes", o, len(got))
		}
	}
}

func TestXMLResumable(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(600 << 10)
	u := h.ask(t, "POST", "/models/dir/a%2Fb", nil, "x-goog-resumable: start", "Content-Type: x/y", "x-goog-meta-k: v").want(t, 201).header.Get("Location")
	h.chunk(t, u, data, 0, 512<<10, "*").want(t, 308)
	h.chunk(t, u, data, 512<<10, 600<<10, "614400").want(t, 200)
	attrs, err := h.object("dir/a/b").Attrs(t.Context())
	if err != nil || attrs.ContentType != "x/y" || attrs.Metadata["k"] != "v" || attrs.Size != 614400 {
		t.Fatalf("%+v, %v", attrs, err)
	}
	u = h.ask(t, "POST", "/models/b", nil, "x-goog-resumable: start").want(t, 201).header.Get("Location")
	h.ask(t, "DELETE", u, nil).want(t, 499)
}

// broken reads data and then fails, as a client does that goes away.
func broken(data []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(data), goneAway{})
}

type goneAway struct{}

func (goneAway) Read([]byte) (int, error) { return 0, errors.New("gone") }

// TestKilledBetweenTheRecords kills the server when an upload's object is there and the upload's own record
// does not know it yet. The client, which has no answer, asks again and must get that object.
func TestKilledBetweenTheRecords(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	data := pattern(300 << 10)
	u := h.begin(t, "a")
	h.chunk(t, u, data, 0, 256<<10, "*").want(t, 308)
	records, err := filepath.Glob(filepath.Join(dir, name, "uploads", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	unfinished, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	made := h.chunk(t, u, data, 256<<10, len(data), fmt.Sprint(len(data))).want(t, 200).resource(t)
	h.Close()
	if err := os.WriteFile(records[0], unfinished, 0o666); err != nil {
		t.Fatal(err)
	}
	h = restart(t, dir)
	again := h.chunk(t, h.URL+path(u), data, 256<<10, len(data), fmt.Sprint(len(data))).want(t, 200).resource(t)
	if again.Generation != made.Generation {
		t.Errorf("generation %s became %s", made.Generation, again.Generation)
	}
	if got := h.ask(t, "GET", "/models/a", nil).want(t, 200).body; !bytes.Equal(got, data) {
		t.Errorf("stored %d bytes", len(got))
	}
}

// TestRestart kills the server in the middle of uploads and goes on with another one.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	data := pattern(1<<20 + 77)
	put(t, h.object("done"), data)
	u := h.begin(t, "a", "X-Goog-Hash: crc32c="+h.upload(t, "sum", data).CRC32C)
	finished := h.begin(t, "finished")
	h.ask(t, "PUT", finished, data).want(t, 200)
	h.chunk(t, u, data, 0, 256<<10, "*").want(t, 308)
	// The connection breaks inside the second chunk, 100 bytes behind a quantum.
	handled := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(handled)
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	if a, err := h.try("PUT", srv.URL+path(u), broken(data[256<<10:512<<10+100]), "Content-Range: bytes 262144-786431/*"); err == nil {
		t.Fatalf("an answer to half a request: %+v", a)
	}
	<-handled
	before := names(t, h, nil)
	h.Close() // gives the directory's lock back, as a kill does

	h = restart(t, dir)
	if got := names(t, h, nil); got != before {
		t.Errorf("objects after the restart: %s, want %s", got, before)
	}
	u, finished = h.URL+path(u), h.URL+path(finished)
	if got := h.probe(t, u); got != "bytes=0-524287" {
		t.Errorf("kept over the restart: %s", got)
	}
	h.chunk(t, u, data, 512<<10, len(data), fmt.Sprint(len(data))).want(t, 200)
	if r := h.ask(t, "PUT", finished, nil, "Content-Range: bytes */*").want(t, 200).resource(t); r.Size != fmt.Sprint(len(data)) {
		t.Errorf("a finished upload after the restart: %+v", r)
	}
	for _, o := range []string{"done", "a", "finished"} {
		if got := get(t, h.object(o), 0, -1); !bytes.Equal(got, data) {
			t.Errorf("%s differs after the restart", o)
		}
	}
	if a := put(t, h.object("done").If(storage.Conditions{GenerationMatch: attrs(t, h, "done").Generation}), []byte("new")); a.Size != 3 {
		t.Errorf("%+v", a)
	}
	if got := leftovers(t, dir); !strings.HasPrefix(got, "models/blobs 4, models/objects 4, models/uploads ") {
		t.Errorf("on disk: %s", got)
	}
}

func attrs(t *testing.T, h *host, o string) *storage.ObjectAttrs {
	t.Helper()
	a, err := h.object(o).Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// path returns what follows the host in a URL.
func path(url string) string {
	_, rest, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	return "/" + rest
}

func restart(t *testing.T, dir string) *host {
	t.Helper()
	s, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, s)
}

// announced tells when the server first reads a body.
type announced struct {
	io.ReadCloser
	once *sync.Once
	read chan struct{}
}

func (a announced) Read(p []byte) (int, error) {
	a.once.Do(func() { close(a.read) })
	return a.ReadCloser.Read(p)
}

// TestSecondRequestTakesOver stalls a chunk on its way; the client's next try ends it.
func TestSecondRequestTakesOver(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(768 << 10)
	u := path(h.begin(t, "a"))
	read := announced{once: new(sync.Once), read: make(chan struct{})}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = announced{r.Body, read.once, read.read}
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	body, feed := io.Pipe()
	first := make(chan error, 1)
	go func() {
		a, err := h.try("PUT", srv.URL+u, body, "Content-Range: bytes 0-786431/786432")
		if err == nil && a.status == 200 {
			first <- errors.New("the stalled request succeeded")
			return
		}
		first <- nil
	}()
	if _, err := feed.Write(data[:512<<10]); err != nil {
		t.Fatal(err)
	}
	<-read.read // now it has the upload to itself, and nothing more comes
	a, err := h.try("PUT", srv.URL+u, bytes.NewReader(data), "Content-Range: bytes 0-786431/786432")
	feed.CloseWithError(errors.New("given up"))
	if err != nil || a.status != 200 {
		t.Fatalf("%d %v %s", a.status, err, a.body)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if got := get(t, h.object("a"), 0, -1); !bytes.Equal(got, data) {
		t.Errorf("stored %d bytes", len(got))
	}
}

func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	if _, err := bucket.New(dir); err == nil || !strings.Contains(err.Error(), "another server holds it") {
		t.Errorf("a second server: %v", err)
	}
	h.Close()
	s, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestOmitMD5(t *testing.T) {
	s, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.OmitMD5 = true
	if err := s.CreateBucket(name); err != nil {
		t.Fatal(err)
	}
	h := serve(t, s)
	sum := "md5=XrY7u+Ae7tCTyyK7j1rNww==" // of "hello world"
	if r := h.upload(t, "a", []byte("hello world")); r.MD5Hash != "" || r.CRC32C == "" {
		t.Errorf("%+v", r)
	}
	r := h.ask(t, "PUT", h.begin(t, "b"), []byte("hello world"), "X-Goog-Hash: "+sum).want(t, 200).resource(t)
	if "md5="+r.MD5Hash != sum {
		t.Errorf("%+v", r)
	}
	h.ask(t, "PUT", h.begin(t, "b"), []byte("hello_world"), "X-Goog-Hash: "+sum).want(t, 400)
	h.ask(t, "PUT", "/models/b", []byte("hello_world"), "Content-MD5: "+sum[4:]).want(t, 400)
}

// The upload handler reached without a network, for what a real client's transport would refuse.
func FuzzMultipart(f *testing.F) {
	f.Add("multipart/related; boundary=b", []byte("--b\r\n\r\n{\"name\":\"a\"}\r\n--b\r\n\r\nx\r\n--b--"))
	f.Add("multipart/related; boundary=\"b b\"", []byte("--b b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b b--"))
	f.Add("multipart/related; boundary=b", []byte("--b\r\n\r\n{\"metadata\":{\"a\":null}}\r\n--b\r\n\r\n\r\n--b\r\n\r\nthird\r\n--b--"))
	f.Add("text/plain", []byte{})
	dir := f.TempDir()
	s, err := bucket.New(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	if err := s.CreateBucket(name); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := httptest.NewRequest("POST", "/upload/storage/v1/b/models/o?uploadType=multipart", bytes.NewReader(body))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		switch w.Code {
		case 200:
			var o resource
			if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil || o.Name == "" || o.CRC32C == "" {
				t.Errorf("stored, but answered %s", w.Body)
			}
		case 400:
		default:
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	})
}
