package gcs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/gcs"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/bucket"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(benchServe); dir != "" {
		beServer(dir)
	}
	// opencensus, which the storage client links, starts this one when it is loaded.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const name = "models"

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// serve starts an embedded bucket with these objects and points the Go client at it.
func serve(t *testing.T, objects map[string][]byte) *bucket.Server {
	t.Helper()
	s, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket(name); err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	emulate(t, h.URL)
	for key, b := range objects {
		upload(t, h.URL, key, b)
	}
	s.ResetRequests()
	return s
}

// emulate points the Go clients of both protocols at a server.
func emulate(t testing.TB, url string) {
	t.Setenv("STORAGE_EMULATOR_HOST", url)
	t.Setenv("STORAGE_EMULATOR_HOST_GRPC", url)
}

// transports are the ways to open a source.
var transports = map[string]func(ctx context.Context, bucket, prefix string) (*gcs.Source, error){
	"http": gcs.New,
	"grpc": func(ctx context.Context, bucket, prefix string) (*gcs.Source, error) {
		return gcs.NewGRPC(ctx, bucket, prefix, quiet())
	},
}

// overBoth runs a test over each transport.
func overBoth(t *testing.T, f func(t *testing.T, transport string)) {
	for _, transport := range slices.Sorted(maps.Keys(transports)) {
		t.Run(transport, func(t *testing.T) { f(t, transport) })
	}
}

func upload(t *testing.T, base, key string, b []byte) {
	t.Helper()
	res, err := http.Post(fmt.Sprintf("%s/upload/storage/v1/b/%s/o?uploadType=media&name=%s", base, name, url.QueryEscape(key)), "application/octet-stream", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, transport, bucket, prefix string) *gcs.Source {
	t.Helper()
	src, err := transports[transport](t.Context(), bucket, prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return src
}

func TestConformance(t *testing.T) {
	overBoth(t, func(t *testing.T, transport string) {
		for _, prefix := range []string{"", "a/prefix", "/slashed/"} {
			t.Run("prefix "+prefix, func(t *testing.T) {
				fetchtest.Conformance(t, func(t *testing.T, objects map[string][]byte) fetch.Source {
					below := map[string][]byte{"a/prefixed": []byte("not below it")}
					if prefix == "" {
						below = map[string][]byte{}
					}
					for key, b := range objects {
						below[strings.Trim(strings.Trim(prefix, "/")+"/"+key, "/")] = b
					}
					serve(t, below)
					return open(t, transport, name, prefix)
				})
			})
		}
	})
}

func TestString(t *testing.T) {
	serve(t, nil)
	for prefix, want := range map[string]string{"": "gs://models", "a/b/": "gs://models/a/b"} {
		if got := open(t, "http", name, prefix).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// load fetches a model of n chunks from the embedded bucket and returns the load.
func load(t *testing.T, src fetch.Source, m *fetchtest.Model) (*fetch.Load, *cache.Entry) {
	t.Helper()
	c, err := cache.Open(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	entry, err := c.Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	e := fetch.New(fetch.Config{Source: src, Streams: 4, Log: quiet(), Stall: 5 * time.Second}) // longer than a busy machine holds up a test that counts requests
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	l := e.Start(entry)
	<-l.Done()
	cancel()
	<-ended
	return l, entry
}

const chunks = 12

func model(t *testing.T) *fetchtest.Model {
	return fetchtest.NewModel(t, "org/model", map[string]int{"w": chunks*fetchtest.ChunkSize - 5})
}

// A load is one request for each chunk, of its generation from the second one on.
func TestLoad(t *testing.T) { overBoth(t, testLoad) }

func testLoad(t *testing.T, transport string) {
	m := model(t)
	s := serve(t, m.Objects)
	src := open(t, transport, name, "")
	got, _, err := fetch.Resolve(t.Context(), src, m.Ref())
	if err != nil || got.Model != m.Manifest.Model {
		t.Fatal(err)
	}
	if n := len(s.Requests()); n != 2 {
		t.Errorf("%d requests to resolve", n)
	}
	s.ResetRequests()
	l, entry := load(t, src, m)
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	if err := fetch.Verify(t.Context(), entry.Dir(), m.Manifest, nil); err != nil {
		t.Error(err)
	}
	unpinned := 0
	for _, r := range s.Requests() {
		if want := map[string]int{"http": http.StatusPartialContent, "grpc": http.StatusOK}[transport]; r.Status != want || r.Range == "" {
			t.Errorf("%+v", r)
		}
		if r.Query == "" {
			unpinned++
		} else if !strings.HasPrefix(r.Query, "generation=") {
			t.Errorf("%+v", r)
		}
	}
	if n := len(s.Requests()); n != chunks || unpinned > 4 {
		t.Errorf("%d requests, %d without a generation", n, unpinned)
	}
}

// Each fault costs one more request, is counted by its cause, and leaves the right bytes.
func TestFaults(t *testing.T) { overBoth(t, testFaults) }

func testFaults(t *testing.T, transport string) {
	for _, fault := range []string{
		"return-503", "return-429", "return-500", "return-reset-connection", "return-broken-stream", "return-broken-stream-after-32K",
		"return-corrupted-data", "return-corrupted-data-with-its-crc32c", "return-short-stream", "return-503-after-32K", "stall-always",
	} {
		t.Run(fault, func(t *testing.T) {
			m := model(t)
			s := serve(t, m.Objects)
			if err := s.Plan("storage.objects.get", "", fault); err != nil {
				t.Fatal(err)
			}
			l, entry := load(t, open(t, transport, name, ""), m)
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			if err := fetch.Verify(t.Context(), entry.Dir(), m.Manifest, nil); err != nil {
				t.Error(err)
			}
			// A connection that was idle and is reset before the first byte of an answer looks to net/http
			// like one that the server had closed: it sends that request again by itself.
			refetches := l.Progress().Refetches
			if fault == "return-reset-connection" && refetches == 0 {
				refetches = 1
			}
			if n := len(s.Requests()); n != chunks+1 || refetches != 1 {
				t.Errorf("%d requests, %d refetches", n, l.Progress().Refetches)
			}
		})
	}
}

// An object that is replaced by the same bytes in the middle is no trouble; by others, an error that
// names the file.
func TestReplaced(t *testing.T) { overBoth(t, testReplaced) }

func testReplaced(t *testing.T, transport string) {
	for _, same := range []bool{true, false} {
		t.Run(fmt.Sprint("same ", same), func(t *testing.T) {
			m := model(t)
			serve(t, m.Objects)
			key := m.Manifest.Model.Object("w")
			src := open(t, transport, name, "")
			body, err := src.Open(t.Context(), key, 0, 5) // pins
			if err != nil {
				t.Fatal(err)
			}
			body.Close()
			b := bytes.Clone(m.Objects[key])
			if !same {
				for i := range b {
					b[i] ^= 1
				}
			}
			upload(t, os.Getenv("STORAGE_EMULATOR_HOST"), key, b)
			l, _ := load(t, src, m)
			var mismatch *manifest.MismatchError
			if same && l.Err() != nil || !same && !errors.As(l.Err(), &mismatch) {
				t.Errorf("%v", l.Err())
			}
		})
	}
}

func TestMissing(t *testing.T) { overBoth(t, testMissing) }

func testMissing(t *testing.T, transport string) {
	serve(t, nil)
	_, err := open(t, transport, name, "").Get(t.Context(), "x", 1)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no object x in gs://models") {
		t.Errorf("%v", err)
	}
	_, err = open(t, transport, "no-such-bucket", "p").Get(t.Context(), "x", 1)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "there is no bucket gs://no-such-bucket") {
		t.Errorf("%v", err)
	}
	for _, err := range open(t, transport, "no-such-bucket", "p").List(t.Context(), "x") {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "there is no bucket gs://no-such-bucket") {
			t.Errorf("%v", err)
		}
	}
	_, _, err = fetch.Resolve(t.Context(), open(t, transport, "no-such-bucket", ""), manifest.Reference{Repo: "org/model"})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "there is no bucket gs://no-such-bucket") {
		t.Errorf("%v", err)
	}
}

// hostile serves one answer to everything.
func hostile(t *testing.T, answer http.HandlerFunc) *gcs.Source {
	t.Helper()
	h := httptest.NewServer(answer)
	t.Cleanup(h.Close)
	t.Setenv("STORAGE_EMULATOR_HOST", h.URL)
	return open(t, "http", name, "")
}

// What the service refuses comes with a class, a remedy, and no more of its text than fits a line.
func TestRefused(t *testing.T) {
	for code, class := range map[int]error{401: fs.ErrPermission, 403: fs.ErrPermission, 404: fs.ErrNotExist, 416: io.EOF, 400: nil, 412: nil, 503: nil, 302: nil} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			seen := 0
			src := hostile(t, func(w http.ResponseWriter, r *http.Request) {
				seen++
				w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
				w.WriteHeader(code)
				fmt.Fprintf(w, "<Error><Code>AccessDenied</Code><Message>two\nlines %s</Message></Error>", strings.Repeat("x", 5000))
			})
			_, err := src.Open(t.Context(), "x", 0, 1)
			var status *fetch.StatusError
			switch {
			case class != nil && !errors.Is(err, class), class == nil && (!errors.As(err, &status) || status.Code != code):
				t.Errorf("%v", err)
			case strings.Contains(err.Error(), "\n") || len(err.Error()) > 500:
				t.Errorf("%d bytes: %q", len(err.Error()), err)
			}
			if seen != 1 {
				t.Errorf("%d requests", seen)
			}
		})
	}
}

// An error's body that never ends costs no more than its bound.
func TestEndlessError(t *testing.T) {
	src := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		for b := bytes.Repeat([]byte("x"), 32<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	if _, err := src.Open(t.Context(), "x", 0, 1); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
}

// A listing that never ends costs no more than its bound, once.
func TestEndlessListing(t *testing.T) {
	seen := 0
	src := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		seen++
		fmt.Fprint(w, `{"kind":"`)
		for b := bytes.Repeat([]byte("x"), 32<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, err := range src.List(ctx, "x") {
		var large *http.MaxBytesError
		if !errors.As(err, &large) {
			t.Errorf("%v", err)
		}
	}
	if seen != 1 {
		t.Errorf("%d requests", seen)
	}
}

// Answers that are not what was asked for are errors, whatever their status.
func TestLies(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"another range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, "0123456789")
		},
		"the whole object": func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 100)) },
		"no range":         func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusPartialContent) },
	} {
		t.Run(name, func(t *testing.T) {
			src := hostile(t, answer)
			var err error
			for range 2 {
				var body io.ReadCloser
				if body, err = src.Open(t.Context(), "x", 10, 10); err == nil {
					body.Close()
				}
			}
			if err == nil {
				t.Error("it was taken")
			}
		})
	}
}

// A body that breaks gives its own reason, and the client does not ask for the rest by itself.
func TestOneRequest(t *testing.T) {
	seen := 0
	src := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		seen++
		w.Header().Set("Content-Range", "bytes 0-9/10")
		w.Header().Set("Content-Length", "10")
		w.WriteHeader(http.StatusPartialContent)
		fmt.Fprint(w, "01234")
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	body, err := src.Open(t.Context(), "x", 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", b, err)
	}
	if seen != 1 {
		t.Errorf("%d requests", seen)
	}
}
