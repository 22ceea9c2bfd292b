package gcs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/gcs"
	"github.com/headstart-serving/headstart/stager/bucket"
)

// liar stands before a bucket and spoils its answers. It asks, for each read of an object, which lie to
// tell; nil is none.
type liar struct {
	bucket *bucket.Server
	before func(repo string, n int) // called before the nth read of a repository, while no later one begins; may be nil

	mu    sync.Mutex
	asked map[string]int                       // reads, by repository
	lies  map[string]func(n int, r *read) *lie // n counts a repository's reads from 1
}

// read is an answer that is right.
type read struct {
	header http.Header
	body   []byte
	status int
}

// lie changes an answer, or gives one by itself.
type lie struct {
	change func(r *read)
	serve  func(w http.ResponseWriter, r *http.Request, right *read)
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/") // bucket, org, model, …
	if r.Method != http.MethodGet || len(parts) < 3 || parts[0] != name {
		l.bucket.ServeHTTP(w, r)
		return
	}
	l.mu.Lock()
	l.asked[parts[2]]++
	n, tell := l.asked[parts[2]], l.lies[parts[2]]
	if l.before != nil {
		l.before(parts[2], n)
	}
	l.mu.Unlock()
	if tell == nil {
		l.bucket.ServeHTTP(w, r)
		return
	}
	recorded := httptest.NewRecorder()
	l.bucket.ServeHTTP(recorded, r)
	right := &read{header: recorded.Header(), body: recorded.Body.Bytes(), status: recorded.Code}
	f := tell(n, right)
	if f != nil && f.serve != nil {
		f.serve(w, r, right)
		return
	}
	if f != nil {
		f.change(right)
	}
	maps.Copy(w.Header(), right.header)
	w.WriteHeader(right.status)
	_, _ = w.Write(right.body) // the client may be gone
}

func refuse(code int) lie {
	return lie{change: func(r *read) {
		r.status, r.body = code, fmt.Appendf(nil, "<Error><Code>Code%d</Code><Message>told to</Message></Error>", code)
		r.header = http.Header{}
	}}
}

// cut sends so much of the right body and then does something to the connection.
func cut(at func(n int) int, then func(c net.Conn, r *http.Request)) lie {
	return lie{serve: func(w http.ResponseWriter, r *http.Request, right *read) {
		maps.Copy(w.Header(), right.header)
		w.WriteHeader(right.status)
		if _, err := w.Write(right.body[:at(len(right.body))]); err != nil {
			return
		}
		control := http.NewResponseController(w)
		if control.Flush() != nil {
			return
		}
		if c, _, err := control.Hijack(); err == nil {
			defer c.Close()
			then(c, r)
		}
	}}
}

func half(n int) int { return n / 2 }

// hang leaves a connection open until the other side gives it up.
func hang(c net.Conn, _ *http.Request) { _, _ = io.Copy(io.Discard, c) }

func reset(c net.Conn, _ *http.Request) { _ = c.(*net.TCPConn).SetLinger(0) }

func raw(text string) lie {
	return lie{serve: func(w http.ResponseWriter, _ *http.Request, _ *read) {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}}
}

func header(key string, value func(string) string) lie {
	return lie{change: func(r *read) {
		if v := value(r.header.Get(key)); v == "" {
			r.header.Del(key)
		} else {
			r.header.Set(key, v)
		}
	}}
}

// lies has every way in which an answer can be another one than the right one. A client that believes one
// of them gets wrong bytes, or waits for ever.
var lies = map[string]lie{
	"truncated, says so": {change: func(r *read) {
		r.body = r.body[:len(r.body)/2]
		r.header.Set("Content-Length", strconv.Itoa(len(r.body)))
	}},
	"truncated": cut(half, func(net.Conn, *http.Request) {}),
	"empty":     {change: func(r *read) { r.body = nil; r.header.Set("Content-Length", "0") }},
	"longer": {change: func(r *read) {
		r.body = append(slices.Clone(r.body), "more"...)
		r.header.Set("Content-Length", strconv.Itoa(len(r.body)))
	}},
	"first byte":              {change: func(r *read) { r.body[0] ^= 1 }},
	"last byte":               {change: func(r *read) { r.body[len(r.body)-1] ^= 1 }},
	"two bytes in a turn":     {change: func(r *read) { b := r.body; b[0], b[len(b)-1] = b[len(b)-1]+1, b[0]+1 }},
	"all zero":                {change: func(r *read) { clear(r.body) }},
	"stalled":                 cut(func(int) int { return 0 }, hang),
	"stalled in the middle":   cut(half, hang),
	"stalled before the end":  cut(func(n int) int { return n - 1 }, hang),
	"reset":                   cut(half, reset),
	"no answer":               raw(""),
	"garbage":                 raw("SSH-2.0-OpenSSH_9.6\r\n\r\n"),
	"half a header":           raw("HTTP/1.1 206 Partial Content\r\nContent-Le"),
	"another generation":      header("X-Goog-Generation", func(string) string { return "123456" }),
	"no generation":           header("X-Goog-Generation", func(string) string { return "" }),
	"a generation of letters": header("X-Goog-Generation", func(string) string { return "abc" }),
	"another range":           header("Content-Range", func(s string) string { return strings.Replace(s, "bytes ", "bytes 1", 1) }),
	"no range":                header("Content-Range", func(string) string { return "" }),
	"a range of nonsense":     header("Content-Range", func(string) string { return "bytes */*" }),
	"says gzip":               header("Content-Encoding", func(string) string { return "gzip" }),
	"the object's beginning": {change: func(r *read) {
		r.status, r.body = http.StatusOK, bytes.Repeat([]byte("x"), len(r.body))
		r.header.Del("Content-Range")
	}},
	"302": refuse(302), "401": refuse(401), "403": refuse(403), "404": refuse(404), "408": refuse(408), "412": refuse(412), "416": refuse(416),
	"429": refuse(429), "500": refuse(500), "503": refuse(503),
}

// world is a bucket of many models behind a liar.
type world struct {
	liar *liar
	url  string
	grpc *gcs.Source // of all loads; nil for a source over HTTP for each
}

func newWorld(t *testing.T, models []*fetchtest.Model) *world {
	objects := map[string][]byte{}
	for _, m := range models {
		maps.Copy(objects, m.Objects)
	}
	s := serve(t, objects)
	l := &liar{bucket: s, asked: map[string]int{}, lies: map[string]func(int, *read) *lie{}}
	h := httptest.NewServer(l)
	t.Cleanup(h.Close)
	t.Setenv("STORAGE_EMULATOR_HOST", h.URL)
	return &world{liar: l, url: h.URL}
}

// load fetches a model, and returns how that ended. Wrong bytes fail the test.
func (w *world) load(t *testing.T, c *cache.Cache, m *fetchtest.Model, patience time.Duration) error {
	t.Helper()
	src := w.grpc
	if src == nil {
		var err error
		if src, err = gcs.New(t.Context(), name, ""); err != nil {
			t.Error(err)
			return nil
		}
		defer src.Close()
	}
	entry, err := c.Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Error(err)
		return nil
	}
	e := fetch.New(fetch.Config{Source: src, Streams: 3, Log: quiet(), Stall: 3 * time.Second, Patience: patience})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	l := e.Start(entry)
	var readers sync.WaitGroup
	for i, f := range m.Manifest.Files {
		for ch := range m.Manifest.ChunksOf(i) {
			readers.Go(func() {
				if l.Wait(ctx, i, ch.Offset, ch.Size) != nil {
					return
				}
				file, err := os.Open(entry.Path(i))
				if err != nil {
					t.Error(err)
					return
				}
				defer file.Close()
				got := make([]byte, ch.Size)
				if _, err := file.ReadAt(got, ch.Offset); err != nil || !bytes.Equal(got, m.Content(f.Path)[ch.Offset:ch.Offset+ch.Size]) {
					t.Errorf("%s: wrong bytes at %d, %v", m.Manifest.Model, ch.Offset, err)
				}
			})
		}
	}
	<-l.Done()
	readers.Wait()
	cancel()
	<-ended
	if l.Err() == nil {
		if err := fetch.Verify(t.Context(), entry.Dir(), m.Manifest, nil); err != nil {
			t.Errorf("%s: %v", m.Manifest.Model, err)
		}
	}
	return l.Err()
}

const tableChunks = 6

// run loads all models at once, a few at a time, and tells how each ended.
func (w *world) run(t *testing.T, models []*fetchtest.Model, patience time.Duration, ended func(i int, err error)) {
	c, err := cache.Open(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	slots := make(chan struct{}, 70) // they wait for pauses, most of the time
	if w.grpc != nil {
		slots = make(chan struct{}, 16) // with the race detector a call takes more of the processor than a request
	}
	var wg sync.WaitGroup
	for i, m := range models {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ended(i, w.load(t, c, m, patience))
		})
	}
	wg.Wait()
}

// Each lie, told once or always, at the beginning or in the middle: right bytes, or one line that names the
// model and what is the matter.
func TestFaultTable(t *testing.T) {
	rows, models := table(t, slices.Sorted(maps.Keys(lies)))
	w := newWorld(t, models)
	for i, r := range rows {
		told := lies[r.lie]
		w.liar.lies[fmt.Sprintf("table-%d", i)] = func(n int, right *read) *lie {
			if n < r.from || r.once && n > r.from || right.status >= 300 {
				return nil
			}
			return &told
		}
	}
	// What one answer ends: the bucket said no. Where the generation was known, a 404 may mean that the
	// object was replaced, and another answer is asked for.
	final := map[string]bool{"302": true, "401": true, "403": true, "404": true, "412": true}
	// What is no harm, however often it is told: the bytes are right.
	harmless := map[string]bool{"longer": true, "no generation": true, "says gzip": true}
	// What ends this way or that, by what else is on its way when it is told.
	either := map[string]bool{"another generation": true, "a generation of letters": true}
	// What the object is blamed for; all else is the network's fault, or the server's.
	wrong := map[string]bool{"truncated, says so": true, "empty": true, "first byte": true, "last byte": true, "two bytes in a turn": true, "all zero": true, "416": true}
	w.judge(t, rows, models, verdicts{final: final, harmless: harmless, either: either, wrong: wrong})
}

// row is one lie, told once or always, from a read on.
type row struct {
	lie  string
	from int
	once bool
}

// table returns each lie, told once or always, at the beginning or in the middle, and a model for each.
func table(t *testing.T, kinds []string) (rows []row, models []*fetchtest.Model) {
	for _, kind := range kinds {
		for _, from := range []int{1, 4} {
			rows = append(rows, row{kind, from, true}, row{kind, from, false})
		}
	}
	for i := range rows {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("org/table-%d", i), map[string]int{"w": tableChunks*fetchtest.ChunkSize - 5}))
	}
	return rows, models
}

// verdicts is what becomes of lies.
type verdicts struct{ final, harmless, either, wrong map[string]bool }

// judge loads all models and compares how that ended with the verdicts.
func (w *world) judge(t *testing.T, rows []row, models []*fetchtest.Model, v verdicts) {
	right, named := 0, 0
	var mu sync.Mutex
	w.run(t, models, 8*time.Second, func(i int, err error) {
		r := rows[i]
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			right++
		case !strings.HasPrefix(err.Error(), "loading "+models[i].Manifest.Model.String()+": ") || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600:
			t.Errorf("%+v: %v", r, err)
		default:
			named++
			t.Logf("%-24s from %d, always=%-5v %.150v", r.lie, r.from, !r.once, err)
		}
		switch {
		case v.harmless[r.lie] && err != nil, r.once && !v.final[r.lie] && err != nil:
			t.Errorf("%+v: %v", r, err)
		case !r.once && !v.harmless[r.lie] && !v.either[r.lie] && err == nil:
			t.Errorf("%+v: no error", r)
		case r.lie == "the object's beginning": // of the first chunk it is the right range with wrong bytes
		case err != nil && strings.Contains(err.Error(), "wrong bytes 5 times") != v.wrong[r.lie]:
			t.Errorf("%+v: blamed on the wrong one: %v", r, err)
		}
	})
	t.Logf("%d cases: %d ended with the right bytes, %d with an error that names the model", len(rows), right, named)
}

// Mixtures of lies, by seed, each of which comes right: all end with the right bytes.
func TestFaultMixtures(t *testing.T) {
	trials := 60
	if testing.Short() {
		trials = 12
	}
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(lies)) {
		if !slices.Contains([]string{"302", "401", "403", "404", "412", "another generation"}, kind) {
			kinds = append(kinds, kind)
		}
	}
	models := make([]*fetchtest.Model, trials)
	for i := range models {
		models[i] = fetchtest.NewModel(t, fmt.Sprintf("org/mixture-%d", i), map[string]int{"config.json": 9, "w": tableChunks*fetchtest.ChunkSize - 5})
	}
	w := newWorld(t, models)
	told := 0
	for i := range models {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		var mu sync.Mutex
		left := 4 // wrong bytes end a load at the fifth time
		w.liar.lies[fmt.Sprintf("mixture-%d", i)] = func(_ int, right *read) *lie {
			mu.Lock()
			defer mu.Unlock()
			if left == 0 || right.status >= 300 || random.IntN(3) > 0 {
				return nil
			}
			left--
			f := lies[kinds[random.IntN(len(kinds))]]
			w.liar.mu.Lock()
			told++
			w.liar.mu.Unlock()
			return &f
		}
	}
	w.run(t, models, 2*time.Minute, func(i int, err error) {
		if err != nil {
			t.Errorf("seed %d: %v", i, err)
		}
	})
	t.Logf("%d mixtures of %d lies", trials, told)
}

// An object that is replaced while it is loaded: by the same bytes, the load goes on; by others, it ends and
// says so, and no chunk of them counts.
func TestReplacedInTheMiddle(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 2 * tableChunks {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("org/replaced-%d", i), map[string]int{"w": tableChunks * fetchtest.ChunkSize}))
	}
	same := func(i int) bool { return i < tableChunks }
	w := newWorld(t, models)
	w.liar.before = func(repo string, n int) {
		i, err := strconv.Atoi(strings.TrimPrefix(repo, "replaced-"))
		if err != nil || n != i%tableChunks+1 {
			return
		}
		key := models[i].Manifest.Model.Object("w")
		b := bytes.Clone(models[i].Objects[key])
		for j := range b {
			if !same(i) {
				b[j] ^= 1
			}
		}
		upload(t, w.url, key, b)
	}
	w.run(t, models, 2*time.Minute, func(i int, err error) {
		if same(i) != (err == nil) || err != nil && !strings.Contains(err.Error(), "w: bytes ") {
			t.Errorf("%s: %v", models[i].Manifest.Model, err)
		}
	})
}
