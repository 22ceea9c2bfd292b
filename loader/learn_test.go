package loader_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

// shard is a model with one large file: chunk 0 is the configuration's, 1 to 8 are the shard's.
func shard(t testing.TB) *fetchtest.Model {
	return fetchtest.NewModel(t, "google/shard", map[string]int{"config.json": 9, "model.safetensors": 8 * chunk})
}

// learn has a node see the shard read from its end, and returns what it has learnt.
func learn(t *testing.T, dir string, m *fetchtest.Model) []byte {
	t.Helper()
	b := newBucket(m)
	n := startNode(t, dir, b)
	if _, err := n.Order(t.Context(), m.Ref()); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") {
		t.Errorf("before anybody has read: %v", err)
	}
	at := target(t)
	publish(t, n, m, at)
	f, err := os.Open(filepath.Join(at, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil { // no reading ahead
		t.Fatal(err)
	}
	b.release() // what is opened before is served to the end
	for c := 7; c >= 0; c-- {
		if _, err := f.ReadAt(make([]byte, 10), int64(c)*chunk+100); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	wait(t, n, m)
	data, err := n.Order(t.Context(), m.Ref())
	if err != nil {
		t.Fatal(err)
	}
	unpublish(t, n, at)
	n.stop()
	return data
}

func backwards(t *testing.T, m *fetchtest.Model) []byte {
	t.Helper()
	data, err := order.Marshal([]int{8, 7, 6, 5, 4, 3, 2, 1}, m.Manifest, manifest.Sum(m.Raw))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLearn(t *testing.T) {
	m, dir := shard(t), t.TempDir()
	if got, want := learn(t, dir, m), backwards(t, m); string(got) != string(want) {
		t.Errorf("learnt %s, want %s", got, want)
	}
	// It outlives the entry, and the node follows it.
	if err := os.RemoveAll(filepath.Join(dir, "entries")); err != nil {
		t.Fatal(err)
	}
	follows(t, dir, newBucket(m), m, 8)
}

// follows has a node load the model and checks how many chunks it knows the place of.
func follows(t *testing.T, dir string, b *bucket, m *fetchtest.Model, chunks int) {
	t.Helper()
	n := startNode(t, dir, b)
	at := target(t)
	publish(t, n, m, at)
	for s := n.Status(); len(s.Entries) != 1 || s.Entries[0].Learnt != chunks; s = n.Status() {
		time.Sleep(time.Millisecond)
		if t.Context().Err() != nil {
			t.Fatalf("%+v", s)
		}
	}
	b.release()
	wait(t, n, m)
	check(t, at, m)
	unpublish(t, n, at)
	n.stop()
}

func TestLearntElsewhere(t *testing.T) {
	m := shard(t)
	data, err := order.Marshal([]int{5, 6}, m.Manifest, manifest.Sum(m.Raw))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	learn(t, dir, m)
	if err := os.RemoveAll(filepath.Join(dir, "entries")); err != nil {
		t.Fatal(err)
	}
	b := newBucket(m)
	b.Objects[m.Manifest.Model.OrderKey()] = data // it counts for more than this node's own
	follows(t, dir, b, m, 2)
}

// heard remembers what was warned of.
type heard struct {
	slog.Handler
	mu       sync.Mutex
	warnings []string
}

func (h *heard) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		h.mu.Lock()
		text := r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		h.warnings = append(h.warnings, text)
		h.mu.Unlock()
	}
	return h.Handler.Handle(ctx, r)
}

func (h *heard) await(t *testing.T, n int) []string {
	t.Helper()
	for {
		h.mu.Lock()
		got := slices.Clone(h.warnings)
		h.mu.Unlock()
		if len(got) >= n {
			return got
		}
		if t.Context().Err() != nil {
			t.Fatalf("%q", got)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBadOrders: an order that is no good is said to be, and the model loads as without one.
func TestBadOrders(t *testing.T) {
	m := shard(t)
	good := string(backwards(t, m))
	for name, c := range map[string]struct{ bucket, own, warning string }{
		"garbage":          {"}", "", "bucket's order"},
		"another manifest": {strings.Replace(good, manifest.Sum(m.Raw).String(), strings.Repeat("0", 64), 1), "", "another manifest"},
		"twice":            {strings.Replace(good, "[1,1]", "[8,1]", 1), "", "comes twice"},
		"too far":          {strings.Replace(good, "[8,1]", "[9,1]", 1), "", "the model has 9"},
		"too long":         {strings.Repeat(" ", order.MaxSize+1), "", "bucket's order"},
		"torn":             {"", good[:20], "learnt order"},
	} {
		t.Run(name, func(t *testing.T) {
			b, dir := newBucket(m), t.TempDir()
			if c.bucket != "" {
				b.Objects[m.Manifest.Model.OrderKey()] = []byte(c.bucket)
			}
			if c.own != "" {
				n := startNode(t, dir, newBucket(m))
				n.stop()
				id := "google--shard@" + fetchtest.Commit[:12] + "-" + manifest.Sum(m.Raw).String()[:32]
				if err := errors.Join(os.Mkdir(filepath.Join(dir, "orders"), 0o700), os.WriteFile(filepath.Join(dir, "orders", id), []byte(c.own), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			h := &heard{Handler: slog.NewTextHandler(testLog{t}, nil)}
			n := startNode(t, dir, b, func(cfg *loader.Config) { cfg.Log = slog.New(h) })
			at := target(t)
			publish(t, n, m, at)
			if got := h.await(t, 1); !strings.Contains(got[0], c.warning) {
				t.Errorf("%q", got)
			}
			b.release()
			wait(t, n, m)
			check(t, at, m)
			if s := n.Status(); s.Entries[0].Learnt != 0 || s.Entries[0].State != "complete" {
				t.Errorf("%+v", s)
			}
			unpublish(t, n, at)
			n.stop()
			if got := h.await(t, 1); len(got) != 1 {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestLessIsNotLearnt: a reader that finds most of a model there does not take away what is known.
func TestLessIsNotLearnt(t *testing.T) {
	m, dir := shard(t), t.TempDir()
	want := learn(t, dir, m)
	if err := os.RemoveAll(filepath.Join(dir, "entries")); err != nil {
		t.Fatal(err)
	}
	b := newBucket(m)
	n := startNode(t, dir, b)
	at := target(t)
	publish(t, n, m, at)
	f, err := os.Open(filepath.Join(at, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	b.release()
	if _, err := f.Read(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	wait(t, n, m)
	if got, err := n.Order(t.Context(), m.Ref()); err != nil || string(got) != string(want) {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	unpublish(t, n, at)
	n.stop()
	if got, err := os.ReadFile(filepath.Join(dir, "orders", files(t, filepath.Join(dir, "orders"))[0])); err != nil || string(got) != string(want) {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
