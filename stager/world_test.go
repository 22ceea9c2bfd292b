package stager_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// tinyChunk is the smallest size of chunks in bytes: runs are counted in thousands.
const tinyChunk = 64 << 10

const tinyToken = "hf_SecretSecretSecret"

// tinyRepo has a file for each way that one can go: small, empty, two parts that git knows, three parts
// and one part that LFS knows.
type tinyRepo struct {
	*repo
	list []hub.File
}

// newTinyRepo returns the same one each time: it does not change.
var newTinyRepo = sync.OnceValue(func() tinyRepo {
	r := tinyRepo{repo: &repo{name: "google/gemma-test", files: map[string][]byte{"config.json": []byte(`{"a":1}`), "empty.txt": nil}}}
	r.files["tokenizer.json"] = make([]byte, 2*tinyChunk+100)
	rand.NewChaCha8([32]byte{9}).Read(r.files["tokenizer.json"])
	r.files["model-1.safetensors"] = stagertest.Safetensors(5*tinyChunk + 17)
	r.files["model-2.safetensors"] = stagertest.Safetensors(tinyChunk)
	r.list = r.repo.Files()
	for i := range r.list {
		r.list[i].LFS = strings.HasSuffix(r.list[i].Path, ".safetensors")
	}
	return r
})

func (r tinyRepo) Files() []hub.File { return slices.Clone(r.list) }

func (r tinyRepo) size() (n int64) {
	for _, data := range r.files {
		n += int64(len(data))
	}
	return n
}

// headers is how many bytes a run reads at most of the shards before it begins.
func (r tinyRepo) headers() (n int64) {
	for path, data := range r.files {
		if strings.HasSuffix(path, ".safetensors") {
			n += min(int64(len(data)), 64<<10)
		}
	}
	return n
}

func (r tinyRepo) model() manifest.Model { return manifest.Model{Repo: r.name, Commit: r.Commit()} }

// kind is what a request is for.
type kind string

const (
	info    kind = "hub revision"
	tree    kind = "hub tree"
	resolve kind = "hub resolve"
	small   kind = "hub file"
	cdn     kind = "cdn"
	list    kind = "bucket list"
	get     kind = "bucket get"
	attrs   kind = "bucket attrs"
	insert  kind = "bucket insert"
	compose kind = "bucket compose"
	remove  kind = "bucket delete"
	probe   kind = "bucket probe"
	other   kind = "other"
)

// call is one request of a run: the nth of those that look like it.
type call struct {
	kind kind
	what string
	nth  int
}

func (c call) String() string { return fmt.Sprintf("%s %s #%d", c.kind, c.what, c.nth) }

// world is a Hub, its CDN and a bucket on a network in memory, where each request can go wrong.
type world struct {
	t      testing.TB
	repo   tinyRepo
	net    *stagertest.Network
	hub    *hub.Server
	bucket *bucket.Server
	server *http.Server
	api    http.Handler
	cdn    http.Handler
	dir    string

	mu     sync.Mutex
	plan   func(call) *fault
	seen   map[string]int
	calls  []call
	met    []string      // faults that happened
	bytes  int64         // of files that the Hub sent
	leaked []string      // requests that carried the token to where it does not belong
	gone   chan struct{} // closed when the world ends
	done   chan struct{}
}

func newWorld(t testing.TB, dir string, r tinyRepo) *world {
	t.Helper()
	w := &world{t: t, repo: r, net: stagertest.NewNetwork(), dir: dir, gone: make(chan struct{}), done: make(chan struct{})}
	var err error
	if w.bucket, err = bucket.New(dir); err != nil {
		t.Fatal(err)
	}
	w.bucket.OmitMD5 = true
	if err := w.bucket.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	w.hub = hub.New(hub.Config{CDN: "http://cdn.test", PageSize: 3, Tokens: map[string]string{tinyToken: "user"}}, r)
	w.api, w.cdn = w.hub.Handler(), w.hub.CDN()
	w.server = &http.Server{Handler: http.HandlerFunc(w.serve), ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(w.done)
		_ = w.server.Serve(w.net) // it ends with the network
	}()
	return w
}

func (w *world) close() {
	close(w.gone)
	w.server.Close()
	<-w.done
	w.bucket.Close()
}

// begin forgets the requests so far, and lets plan (nil: nothing) decide what goes wrong.
func (w *world) begin(plan func(call) *fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plan, w.seen, w.calls, w.met = plan, make(map[string]int), nil, nil
}

// sofar is what has happened since begin, and since the beginning. A server may be at work still when its
// client has gone.
func (w *world) sofar() (calls []call, met, leaked []string, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.calls), slices.Clone(w.met), slices.Clone(w.leaked), w.bytes
}

// identify says what a request is for, so that it is the same call in every run.
func identify(r *http.Request) (kind, string) {
	path, q := r.URL.Path, r.URL.Query()
	object := strings.TrimPrefix(cmp.Or(q.Get("name"), path[strings.LastIndex(path, "/o/")+1:]), "o/")
	switch r.Host {
	case "hub.test":
		switch {
		case strings.Contains(path, "/revision/"):
			return info, ""
		case strings.Contains(path, "/tree/"):
			return tree, ""
		case strings.HasPrefix(path, "/api/resolve-cache/"):
			return small, path[strings.LastIndexByte(path, '/')+1:] + " " + r.Header.Get("Range")
		}
		return resolve, path[strings.LastIndexByte(path, '/')+1:]
	case "cdn.test":
		return cdn, q.Get("response-content-disposition") + " " + r.Header.Get("Range")
	case "bucket.test":
		switch {
		case strings.HasPrefix(path, "/upload/"):
			return insert, object
		case strings.HasSuffix(path, "/compose"):
			return compose, object
		case strings.HasSuffix(path, "/o"):
			return list, q.Get("prefix")
		case strings.Contains(path, "/iam/"):
			return probe, ""
		case r.Method == http.MethodDelete:
			return remove, object
		case strings.HasPrefix(path, "/storage/v1/b/models/o/") && q.Get("alt") != "media":
			return attrs, object
		case strings.HasPrefix(path, "/storage/v1/b/models") && q.Get("alt") != "media":
			return probe, ""
		}
		return get, path
	}
	return other, r.Host + path
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	kind, what := identify(r)
	w.mu.Lock()
	c := call{kind: kind, what: what, nth: w.seen[string(kind)+what]}
	w.seen[string(kind)+what]++
	w.calls = append(w.calls, c)
	var f *fault
	if w.plan != nil {
		f = w.plan(c)
	}
	if f != nil {
		w.met = append(w.met, c.String()+": "+f.name)
	}
	if r.Host != "hub.test" && r.Header.Get("Authorization") != "" {
		w.leaked = append(w.leaked, r.Host+r.URL.Path)
	}
	w.mu.Unlock()
	if kind == cdn || kind == small {
		rw = &counting{rw, w}
	}
	if f == nil {
		w.handle(rw, r)
		return
	}
	f.do(&exchange{w: rw, r: r, world: w, call: c})
}

// handle is what the servers do.
func (w *world) handle(rw http.ResponseWriter, r *http.Request) {
	switch r.Host {
	case "hub.test":
		w.api.ServeHTTP(rw, r)
	case "cdn.test":
		w.cdn.ServeHTTP(rw, r)
	case "bucket.test":
		w.bucket.ServeHTTP(rw, r)
	default: // somebody else's
		rw.Header().Set("Content-Type", "text/html")
		io.WriteString(rw, "<html>Welcome to this network. Please log in.</html>")
	}
}

// counting counts the bytes of files.
type counting struct {
	http.ResponseWriter
	world *world
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.world.bytes += int64(n)
	return n, err
}

func (c *counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// process is what one process stages with.
func (w *world) process(ctx context.Context) (stager.Result, error) {
	source, err := hf.New(hf.Config{Endpoint: "http://hub.test", Token: tinyToken, Dial: w.net.Dial})
	if err != nil {
		return stager.Result{}, err
	}
	defer source.Close()
	store, err := gcs.New(ctx, gcs.Config{Bucket: "models", Emulator: "http://bucket.test", Dial: w.net.Dial})
	if err != nil {
		return stager.Result{}, err
	}
	defer store.Close()
	s := stager.New(stager.Config{Source: source, Store: store, ChunkSize: tinyChunk, Memory: 8 * tinyChunk})
	return s.Stage(ctx, manifest.Reference{Repo: w.repo.name})
}

// contents asks the bucket for everything, without a network.
func (w *world) contents() map[string]string {
	w.t.Helper()
	synctest.Wait() // a request that its client has given up goes on here
	ask := func(path string) []byte {
		rec := httptest.NewRecorder()
		w.bucket.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != http.StatusOK {
			w.t.Fatalf("%s: status %d", path, rec.Code)
		}
		return rec.Body.Bytes()
	}
	var page struct{ Items []struct{ Name string } }
	if err := json.Unmarshal(ask("http://bucket.test/storage/v1/b/models/o"), &page); err != nil {
		w.t.Fatal(err)
	}
	all := make(map[string]string)
	for _, o := range page.Items {
		all[o.Name] = string(ask("http://bucket.test/storage/v1/b/models/o/" + url.PathEscape(o.Name) + "?alt=media"))
	}
	return all
}

// fastDir is a directory in memory where there is one: thousands of buckets come and go.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "headstart-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// differs says how a bucket is not what it should be, "" where it is.
func differs(got, want map[string]string) string {
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if w, ok := want[key]; !ok {
			return key + " is left over"
		} else if w != got[key] {
			return key + " has other bytes"
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[key]; !ok {
			return key + " is missing"
		}
	}
	return ""
}

// tolerable says what is wrong with a bucket in the middle of the road: whatever is under a final name
// has its bytes, and the manifest is there only when all of it is.
func (w *world) tolerable(got, want map[string]string) string {
	committed := false
	for key, data := range got {
		if strings.HasPrefix(key, manifest.Private+"parts/") {
			continue
		}
		if want[key] != data {
			return key + " has other bytes, or should not be there"
		}
		committed = committed || key == w.repo.model().Key()
	}
	if !committed {
		return ""
	}
	for key := range want {
		if _, ok := got[key]; !ok && key != manifest.RefKey(w.repo.name, "main") {
			return "the manifest is there, " + key + " is not"
		}
	}
	return ""
}

// exchange is a request that is about to go wrong.
type exchange struct {
	w     http.ResponseWriter
	r     *http.Request
	world *world
	call  call
}

// answer is what the server would have said. The request has its effect.
func (x *exchange) answer() *http.Response {
	rec := httptest.NewRecorder()
	x.world.handle(rec, x.r)
	return rec.Result()
}

// body is the answer's.
func body(a *http.Response) []byte {
	data, _ := io.ReadAll(a.Body) // of a recorder
	return data
}

// send answers with a status, headers and a body, as a server that means well.
func (x *exchange) send(status int, header http.Header, data []byte) {
	maps.Copy(x.w.Header(), header)
	x.w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		x.w.Write(data)
	}
}

// plain answers with a status and a text.
func (x *exchange) plain(status int, kind, text string) {
	x.send(status, http.Header{"Content-Type": {kind}}, []byte(text))
}

// raw answers by hand: length (below 0: none) is what it says of the body, and then come the bytes.
func (x *exchange) raw(a *http.Response, length int64, data []byte) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", a.StatusCode, http.StatusText(a.StatusCode))
	h := a.Header.Clone()
	h.Del("Content-Length")
	if length >= 0 {
		h.Set("Content-Length", fmt.Sprint(length))
	}
	h.Set("Connection", "close")
	h.Write(&b)
	b.WriteString("\r\n")
	if x.r.Method != http.MethodHead {
		b.Write(data)
	}
	c := x.hijack()
	defer c.Close()
	c.Write(b.Bytes())
	x.world.mu.Lock()
	defer x.world.mu.Unlock()
	if x.call.kind == cdn || x.call.kind == small {
		x.world.bytes += int64(len(data))
	}
}

// hijack takes the connection. What is on its way from the client is read first: a server that does not
// makes a reset of every answer.
func (x *exchange) hijack() *stagertest.Conn {
	io.Copy(io.Discard, x.r.Body)
	c, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(err)
	}
	return c.(*stagertest.Conn)
}

// wait lets time pass, or the client leave.
func (x *exchange) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-x.r.Context().Done():
		panic(http.ErrAbortHandler)
	case <-x.world.gone:
		panic(http.ErrAbortHandler)
	}
}
