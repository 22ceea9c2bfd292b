package gcs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const (
	key = "org/name/0123/model.safetensors"
	dir = manifest.Private + "parts/org/name/0123/cafe/"
)

// serve returns an embedded bucket and what opens it.
func serve(t *testing.T) (*bucket.Server, func(change func(*gcs.Config)) *gcs.Store) {
	t.Helper()
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	return b, func(change func(*gcs.Config)) *gcs.Store {
		c := gcs.Config{Bucket: "models", Prefix: "a/prefix/", Emulator: server.URL, Wait: time.Millisecond, Attempts: 4, Stall: 300 * time.Millisecond}
		if change != nil {
			change(&c)
		}
		s, err := gcs.New(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConform(t *testing.T) {
	stagertest.Conform(t, func(t *testing.T) func() stager.Store {
		_, open := serve(t)
		return func() stager.Store { return open(nil) }
	})
}

// parts divides data into parts of ten bytes.
func parts(data []byte) []stager.Part {
	var ps []stager.Part
	for d := range slices.Chunk(data, 10) {
		ps = append(ps, stager.Part{Offset: int64(10 * len(ps)), Size: int64(len(d)), CRC32C: crc32.Checksum(d, manifest.Castagnoli), Note: []byte("n")})
	}
	return ps
}

func write(t *testing.T, u stager.Upload, data []byte) {
	t.Helper()
	for _, p := range parts(data) {
		must(t, u.Write(t.Context(), p, [][]byte{data[p.Offset : p.Offset+p.Size]}))
	}
}

func ops(b *bucket.Server) map[string]int {
	count := make(map[string]int)
	for _, r := range b.Requests() {
		count[strings.TrimPrefix(r.Op, "storage.objects.")]++
	}
	return count
}

// TestBudget counts the requests of an upload, whose tree has one level or two.
func TestBudget(t *testing.T) {
	for n, want := range map[int]map[string]int{
		2:  {"list": 1, "insert": 2, "compose": 1, "delete": 2},
		32: {"list": 1, "insert": 32, "compose": 1, "delete": 32},
		33: {"list": 1, "insert": 33, "compose": 2, "delete": 34},
	} {
		b, open := serve(t)
		s, data := open(func(c *gcs.Config) { c.Stall = time.Minute }), stagertest.Bytes(10*n-3)
		u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
		must(t, err)
		var group errgroup.Group
		group.SetLimit(8)
		for _, p := range parts(data) {
			group.Go(func() error { return u.Write(t.Context(), p, [][]byte{data[p.Offset : p.Offset+p.Size]}) })
		}
		must(t, group.Wait())
		must(t, u.Commit(t.Context(), parts(data)))
		if got := ops(b); !maps.Equal(got, want) {
			t.Errorf("%d parts: %v, want %v", n, got, want)
		}
		b.ResetRequests()
		must(t, s.Put(t.Context(), "x", 0, data))
		_, version, err := s.Get(t.Context(), "x", 1<<20)
		must(t, err)
		must(t, s.Put(t.Context(), "x", version, data, data))
		must(t, s.Delete(t.Context(), "x"))
		if got := ops(b); !maps.Equal(got, map[string]int{"insert": 2, "get": 1, "delete": 1}) {
			t.Errorf("small objects: %v", got)
		}
	}
}

// TestHighTree composes three at a time.
func TestHighTree(t *testing.T) {
	for n, want := range map[int]map[string]int{
		9:  {"list": 1, "insert": 9, "compose": 3 + 1, "delete": 9 + 3},
		10: {"list": 1, "insert": 10, "compose": 3 + 1 + 1, "delete": 10 + 3 + 1}, // 10, 3 and one, one and one
		28: {"list": 1, "insert": 28, "compose": 9 + 3 + 1 + 1, "delete": 28 + 9 + 3 + 1},
	} {
		b, open := serve(t)
		s, data := open(func(c *gcs.Config) { c.Stall = time.Minute }), stagertest.Bytes(10*n-3)
		s.SetFan(3)
		u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
		must(t, err)
		write(t, u, data)
		must(t, u.Commit(t.Context(), parts(data)))
		if got := ops(b); !maps.Equal(got, want) {
			t.Errorf("%d parts: %v, want %v", n, got, want)
		}
		if got, _, err := s.Get(t.Context(), key, 1000); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d parts: %d bytes, %v", n, len(got), err)
		}
	}
}

// TestFaultsOnce lets each operation meet each fault once.
func TestFaultsOnce(t *testing.T) {
	statuses := []string{"return-408", "return-429", "return-500", "return-502", "return-503", "return-504", "return-reset-connection"}
	for op, more := range map[string][]string{
		"list": {"stall-always"}, "get": {"stall-always", "return-broken-stream"}, "compose": {"stall-always"}, "delete": nil,
		"insert": {"return-503-after-0K", "return-broken-stream-final-chunk-after-0B"},
	} {
		for _, fault := range slices.Concat(statuses, more) {
			t.Run(op+" "+fault, func(t *testing.T) {
				t.Parallel()
				b, open := serve(t)
				s, data := open(nil), stagertest.Bytes(25)
				must(t, s.Put(t.Context(), "there", 0, data))
				must(t, b.Plan("storage.objects."+op, fault))
				if got, _, err := s.Get(t.Context(), "there", 100); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%q, %v", got, err)
				}
				u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
				must(t, err)
				write(t, u, data)
				must(t, u.Commit(t.Context(), parts(data)))
				for o, err := range s.List(t.Context(), manifest.Private) {
					t.Errorf("%s is left, %v", o.Key, err)
				}
				r, err := s.Open(t.Context(), key, 0, -1)
				must(t, err)
				defer r.Close()
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
	}
}

// TestFaultsAlways ends after a bounded number of attempts, with one line.
func TestFaultsAlways(t *testing.T) {
	b, open := serve(t)
	s, data := open(nil), stagertest.Bytes(25)
	must(t, s.Put(t.Context(), "there", 0, data))
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	write(t, u, data)
	for op, call := range map[string]func() error{
		"list":    func() error { _, err := s.Upload(t.Context(), key+"2", dir, 10); return err },
		"get":     func() error { _, _, err := s.Get(t.Context(), "there", 100); return err },
		"insert":  func() error { return s.Put(t.Context(), "new", 0, data) },
		"compose": func() error { return u.Commit(t.Context(), parts(data)) },
		"delete":  func() error { return s.Delete(t.Context(), "there") },
	} {
		b.ResetRequests()
		must(t, b.Plan("storage.objects."+op, "return-503", "return-503", "return-503", "return-503"))
		if err := call(); err == nil || strings.Contains(err.Error(), "\n") || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", op, err)
		}
		if n := ops(b)[op]; n != 4 {
			t.Errorf("%s: %d attempts, want 4", op, n)
		}
	}
}

// TestRefusals is what a person gets to read.
func TestRefusals(t *testing.T) {
	b, open := serve(t)
	missing := open(func(c *gcs.Config) { c.Bucket = "no-such-bucket" })
	var err error
	for _, err = range missing.List(t.Context(), "a/") {
	}
	refused(t, "missing bucket", err, fs.ErrNotExist, "bucket gs://no-such-bucket does not exist", "create it")
	refused(t, "writing to a missing bucket", missing.Put(t.Context(), "a", 0, nil), fs.ErrNotExist, "gs://no-such-bucket")
	s := open(nil)
	must(t, b.Plan("storage.objects.insert", "return-403", "return-401"))
	refused(t, "forbidden", s.Put(t.Context(), "a", 0, nil), fs.ErrPermission, "gs://models", "roles/storage.objectUser")
	refused(t, "bad credentials", s.Put(t.Context(), "a", 0, nil), fs.ErrPermission, "gs://models", "gcloud auth application-default login")
	must(t, b.Plan("storage.objects.list", "return-403"))
	for _, err = range s.List(t.Context(), "a/") {
	}
	refused(t, "forbidden to list", err, fs.ErrPermission, "roles/storage.objectUser")
	must(t, s.Put(t.Context(), "a", 0, []byte("one")))
	refused(t, "occupied", s.Put(t.Context(), "a", 0, []byte("two")), fs.ErrExist, "gs://models/a/prefix/a", "left untouched")
}

func refused(t *testing.T, name string, err, class error, want ...string) {
	t.Helper()
	if !errors.Is(err, class) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q lacks %q", name, err, w)
		}
	}
}

// TestWithoutCredentials fails at once, and says what to do.
func TestWithoutCredentials(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", t.TempDir()+"/none.json")
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	_, err := gcs.New(t.Context(), gcs.Config{Bucket: "models"})
	refused(t, "no credentials", err, fs.ErrPermission, "gs://models", "gcloud auth application-default login")
}

// lying is a service that forgets to compare the sum of what it composes.
type lying struct {
	http.RoundTripper
	t *testing.T
}

func (l lying) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/compose") {
		var body struct {
			Destination map[string]any `json:"destination"`
			Sources     []struct {
				Name       string `json:"name"`
				Generation string `json:"generation"`
			} `json:"sourceObjects"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return nil, err
		}
		if body.Destination["crc32c"] == nil || len(body.Sources) != 3 || body.Sources[0].Generation == "" {
			l.t.Errorf("the service is not told the sum, or not the generations: %+v", body)
		}
		// It leaves out the last part, and the sum that would tell.
		delete(body.Destination, "crc32c")
		body.Sources = body.Sources[:len(body.Sources)-1]
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	}
	return l.RoundTripper.RoundTrip(r)
}

// TestWrongCompositionIsRemoved composes with a service that does not check.
func TestWrongCompositionIsRemoved(t *testing.T) {
	b, open := serve(t)
	s := open(func(c *gcs.Config) { c.Wrap = func(r http.RoundTripper) http.RoundTripper { return lying{r, t} } })
	data := stagertest.Bytes(25)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	write(t, u, data)
	if err := u.Commit(t.Context(), parts(data)); err == nil || !strings.Contains(err.Error(), "is removed") {
		t.Errorf("%v", err)
	}
	if ops(b)["compose"] != 1 {
		t.Errorf("%v", ops(b))
	}
	for o := range s.List(t.Context(), "org/") {
		t.Errorf("%s is there", o.Key)
	}
	s = open(nil)
	u, err = s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	if len(u.Parts()) != 3 {
		t.Errorf("%d parts are left", len(u.Parts()))
	}
	must(t, u.Commit(t.Context(), parts(data)))
}

// TestForeignParts ignores what has a part's place but not its name, and removes it with the rest.
func TestForeignParts(t *testing.T) {
	_, open := serve(t)
	s, data := open(nil), stagertest.Bytes(25)
	for _, name := range []string{"part-", "part-x", "part-0000000000000000-5", "part-00-a", "part-000000000000000a-a.x"} {
		must(t, s.Put(t.Context(), dir+name, 0, data[:10]))
	}
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	if len(u.Parts()) != 0 {
		t.Errorf("%+v", u.Parts())
	}
	must(t, u.Discard(t.Context()))
	for o := range s.List(t.Context(), dir) {
		t.Errorf("%s is left", o.Key)
	}
}
