package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a node whose answers a test sets.
type fake struct {
	err     error
	asked   chan string   // what was asked for
	waiting chan struct{} // Wait ends when it is closed
	left    chan error    // why a Wait ended
}

func newFake() *fake {
	return &fake{asked: make(chan string, 100), waiting: make(chan struct{}), left: make(chan error, 100)}
}

func (f *fake) PublishAs(_ context.Context, ref manifest.Reference, target string, layout loader.Layout) (loader.Published, error) {
	f.asked <- "publish " + ref.String() + " " + target + " " + string(layout)
	return loader.Published{Target: target, Model: ref.String(), Mode: loader.Stream, Size: 7}, f.err
}

func (f *fake) Unpublish(_ context.Context, target string) error {
	f.asked <- "unpublish " + target
	return f.err
}

func (f *fake) Wait(ctx context.Context, ref manifest.Reference, progress func(loader.Progress)) error {
	progress(loader.Progress{Model: ref.String(), Verified: 1})
	f.asked <- "wait " + ref.String()
	select {
	case <-f.waiting:
	case <-ctx.Done():
		f.left <- ctx.Err()
		return ctx.Err()
	}
	progress(loader.Progress{Model: ref.String(), Verified: 2})
	f.left <- f.err
	return f.err
}

func (f *fake) Verify(_ context.Context, ref manifest.Reference, progress func(loader.Check)) error {
	f.asked <- "verify " + ref.String()
	progress(loader.Check{Model: ref.String(), Checked: 1})
	wrong := []string{"a at 0 (disk)"}
	progress(loader.Check{Model: ref.String(), Checked: 2, Wrong: wrong})
	for n := range int64(2) { // together more than fits into a line
		wrong = append(wrong, slices.Repeat([]string{strings.Repeat("b", 90)}, 8000)...)
		progress(loader.Check{Model: ref.String(), Checked: 3 + n, Wrong: wrong})
	}
	return f.err
}

func (f *fake) Order(_ context.Context, ref manifest.Reference) ([]byte, error) {
	f.asked <- "order " + ref.String()
	return []byte("{\"runs\":[[3,1]]}\n"), f.err
}

func (f *fake) Status() loader.Status {
	return loader.Status{Dir: "/cache", Entries: []loader.EntryStatus{{Entry: "e", Progress: loader.Progress{Model: "m", Reason: "slow"}}}, Leases: []loader.LeaseStatus{{Target: "/t"}}}
}

// serve starts a server of f and returns the socket.
func serve(t *testing.T, f *fake) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- control.New(f, quiet()).Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket stays: %v", err)
		}
	})
	return path
}

func dial(t *testing.T, path string) *control.Client {
	c := control.Dial(path)
	t.Cleanup(c.Close)
	return c
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func parse(t *testing.T, s string) manifest.Reference {
	t.Helper()
	ref, err := manifest.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestRoundTrip(t *testing.T) {
	f := newFake()
	close(f.waiting)
	c := dial(t, serve(t, f))
	pin := parse(t, "google/gemma@sha256:"+strings.Repeat("0a", 32))
	p, err := c.Publish(t.Context(), pin, "/a b")
	if err != nil || p.Target != "/a b" || p.Mode != loader.Stream || p.Size != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := c.PublishAs(t.Context(), parse(t, "a/b"), "/c", loader.HF); err != nil {
		t.Error(err)
	}
	if _, err := c.PublishAs(t.Context(), parse(t, "a/b"), "/d", "hfx"); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "plain or hf") {
		t.Errorf("no layout: %v", err)
	}
	if err := c.Unpublish(t.Context(), "/a b"); err != nil {
		t.Error(err)
	}
	var seen []int64
	if err := c.Wait(t.Context(), parse(t, "google/gemma"), func(p loader.Progress) { seen = append(seen, p.Verified) }); err != nil || !reflect.DeepEqual(seen, []int64{1, 2}) {
		t.Errorf("%v, %v", seen, err)
	}
	if err := c.Wait(t.Context(), parse(t, "gpt2@v1"), nil); err != nil {
		t.Error(err)
	}
	var found []string
	err = c.Verify(t.Context(), parse(t, "a/b@v2"), func(c loader.Check) {
		found = append(found, fmt.Sprint(c.Checked, c.Wrong[:min(1, len(c.Wrong))], len(c.Wrong)))
	})
	if err != nil || !reflect.DeepEqual(found, []string{"1 [] 0", "2 [a at 0 (disk)] 1", "3 [a at 0 (disk)] 8001", "4 [a at 0 (disk)] 16001"}) {
		t.Errorf("%q, %v", found, err)
	}
	if s, err := c.Status(t.Context()); err != nil || !reflect.DeepEqual(s, f.Status()) {
		t.Errorf("%+v, %v", s, err)
	}
	if data, err := c.Order(t.Context(), pin); err != nil || string(data) != "{\"runs\":[[3,1]]}\n" {
		t.Errorf("%q, %v", data, err)
	}
	for _, want := range []string{"publish " + pin.String() + " /a b plain", "publish a/b /c hf", "unpublish /a b", "wait google/gemma", "wait gpt2@v1", "verify a/b@v2", "order " + pin.String()} {
		if got := <-f.asked; got != want {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
}

// TestErrors has every class go through the socket, by way of every request.
func TestErrors(t *testing.T) {
	mismatch := &manifest.MismatchError{Path: "model.safetensors", Offset: 16 << 20, Size: 1, Sum: "crc32c", Want: "01", Got: "02"}
	for _, class := range []error{manifest.ErrInvalid, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, fs.ErrExist, syscall.EBUSY, fs.ErrPermission, fs.ErrNotExist, fs.ErrInvalid, context.Canceled, mismatch, io.EOF} {
		f := newFake()
		f.err = fmt.Errorf("what, cause, remedy: %w", class)
		close(f.waiting)
		c := dial(t, serve(t, f))
		_, published := c.Publish(t.Context(), parse(t, "a/b"), "/t")
		for what, err := range map[string]error{"publish": published, "unpublish": c.Unpublish(t.Context(), "/t"), "wait": c.Wait(t.Context(), parse(t, "a/b"), nil), "verify": c.Verify(t.Context(), parse(t, "a/b"), nil)} {
			if err == nil || err.Error() != f.err.Error() {
				t.Errorf("%s: %v, want %v", what, err, f.err)
			}
			var m *manifest.MismatchError
			switch {
			case class == io.EOF:
				if errors.Is(err, io.EOF) {
					t.Errorf("%s: a class that nobody asked for", what)
				}
			case class == mismatch:
				if !errors.As(err, &m) || *m != *mismatch {
					t.Errorf("%s: %#v", what, err)
				}
			case !errors.Is(err, class):
				t.Errorf("%s: %v is not %v", what, err, class)
			}
		}
	}
}

// TestClientGoes: who goes away ends his own wait, at the node too, and nobody else's.
func TestClientGoes(t *testing.T) {
	f := newFake()
	path := serve(t, f)
	c, other := dial(t, path), dial(t, path)
	stays := make(chan error)
	go func() { stays <- other.Wait(t.Context(), parse(t, "a/stays"), nil) }()
	<-f.asked
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- c.Wait(ctx, parse(t, "a/goes"), nil) }()
	<-f.asked
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-f.left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(f.waiting)
	if err := <-stays; err != nil {
		t.Error(err)
	}
}

// TestNodeStops: a wait ends when the node does.
func TestNodeStops(t *testing.T) {
	f := newFake()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- control.New(f, quiet()).Run(ctx, l) }()
	c := dial(t, path)
	waited := make(chan error)
	go func() { waited <- c.Wait(t.Context(), parse(t, "a/b"), nil) }()
	<-f.asked
	cancel()
	if err := <-waited; err == nil {
		t.Error("the wait succeeded")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, err = c.Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "headstart node") || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a node: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	s := control.New(newFake(), quiet())
	for _, test := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v1/publish", "", 405},
		{"POST", "/v1/status", "", 405},
		{"POST", "/v1/publish", "", 400},
		{"POST", "/v1/publish", "{", 400},
		{"POST", "/v1/publish", `[]`, 400},
		{"POST", "/v1/publish", `{"model":"a/b","target":"/t","more":1}`, 400},
		{"POST", "/v1/publish", `{"model":7}`, 400},
		{"POST", "/v1/publish", `{"model":"../../x","target":"/t"}`, 422},
		{"POST", "/v1/wait", `{"model":""}`, 422},
		{"POST", "/v1/unpublish", `{"target":"` + strings.Repeat("a", 100<<10) + `"}`, 400},
		{"POST", "/v1/unpublish", `{"target":"/t"}`, 200},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(test.method, test.path, strings.NewReader(test.body)))
		if w.Code != test.want {
			t.Errorf("%s %s %.50s: %d, want %d: %s", test.method, test.path, test.body, w.Code, test.want, w.Body)
		}
	}
}

// TestBadAnswers has something else than a node at the socket.
func TestBadAnswers(t *testing.T) {
	for _, answer := range []string{"", "{", "[]", "{}", `{"progress":7}`, strings.Repeat("x", 2<<20), `{"error":{"kind":"new","message":"of a newer node"}}`} {
		for _, status := range []int{200, 500} {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				io.WriteString(w, answer)
			})}
			var group sync.WaitGroup
			group.Go(func() { server.Serve(l) })
			c := control.Dial(path)
			if err := c.Wait(t.Context(), parse(t, "a/b"), nil); err == nil {
				t.Errorf("%.50q with status %d is taken for an answer", answer, status)
			}
			if _, err := c.Publish(t.Context(), parse(t, "a/b"), "/t"); err == nil && status != 200 {
				t.Errorf("%.50q with status %d is taken for an answer", answer, status)
			}
			c.Close()
			server.Close()
			group.Wait()
		}
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, err := control.Listen(path); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a live socket: %v", err)
	}
	// A process that was killed leaves a socket on which nobody answers.
	stale := filepath.Join(dir, "stale")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	second, err := control.Listen(stale)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	// What has taken its place meanwhile is not its own.
	if err := errors.Join(os.Remove(stale), os.WriteFile(stale, []byte("mine"), 0o644), second.Close()); err != nil {
		t.Error(err)
	}
	if _, err := control.Listen(stale); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file: %v", err)
	}
	if got, err := os.ReadFile(stale); err != nil || !bytes.Equal(got, []byte("mine")) {
		t.Errorf("the file became %q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after closing: %v", err)
	}
	made, err := control.Listen(filepath.Join(dir, "no", "folder", "socket"))
	if err != nil {
		t.Fatalf("a folder that does not exist: %v", err)
	}
	defer made.Close()
	if st, err := os.Stat(filepath.Join(dir, "no", "folder")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder that was made: %v, %v", st, err)
	}
	if _, err := control.Listen(filepath.Join(dir, strings.Repeat("a", 120))); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long path: %v", err)
	}
}
