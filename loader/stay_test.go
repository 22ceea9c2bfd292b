package loader_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// TestReaderStays: who has a file open when the last lease goes gets its bytes all the same, and its
// entry is not evicted meanwhile.
func TestReaderStays(t *testing.T) {
	m := fetchtest.NewModel(t, "google/read", map[string]int{"a": 8 * chunk})
	other := fetchtest.NewModel(t, "google/other", map[string]int{"a": 8 * chunk})
	b := newBucket(m, other)
	n := startNode(t, small(t, 12*chunk), b, grace(time.Millisecond))
	at := target(t)
	publish(t, n, m, at)
	f, err := os.Open(filepath.Join(at, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpublish(t, n, at)
	if _, err := n.Publish(t.Context(), other.Ref(), at); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("with a reader: %v", err)
	}
	b.release()
	got := make([]byte, 8*chunk)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.Content("a")) {
		t.Errorf("reading on: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	settle(n) // the kernel ends the mount a moment after the close
	publish(t, n, other, at)
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestNothingIsEvictedInVain: a model that can never fit costs nobody anything.
func TestNothingIsEvictedInVain(t *testing.T) {
	first := fetchtest.NewModel(t, "google/a", map[string]int{"a": 4 * chunk})
	second := fetchtest.NewModel(t, "google/b", map[string]int{"a": 4 * chunk})
	large := fetchtest.NewModel(t, "google/c", map[string]int{"a": 20 * chunk})
	b := newBucket(first, second, large)
	b.release()
	n := startNode(t, small(t, 12*chunk), b)
	wait(t, n, first)
	wait(t, n, second)
	at := target(t)
	_, err := n.Publish(t.Context(), large.Ref(), at)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), fmt.Sprintf("needs %d bytes, but %s has", 20*chunk, n.dir)) ||
		!strings.Contains(err.Error(), fmt.Sprintf("%d more could be evicted", 8*chunk)) {
		t.Errorf("too large: %v", err)
	}
	if got := present(n); got != "google/a google/b" {
		t.Errorf("left: %s", got)
	}
}

// TestLostLease has leases that a newer version wrote, that are spoilt, and whose entry is set aside.
func TestLostLease(t *testing.T) {
	m, other := model(t, "google/gemma"), model(t, "google/other")
	b := newBucket(m, other)
	b.release()
	dir := t.TempDir()
	n := startNode(t, dir, b)
	newer, spoilt, aside := target(t), target(t), target(t)
	wait(t, n, m)
	wait(t, n, other)
	publish(t, n, m, newer)
	publish(t, n, other, aside)
	before := files(t, filepath.Join(dir, "leases"))
	publish(t, n, m, spoilt)
	n.stop()
	for _, name := range files(t, filepath.Join(dir, "leases")) {
		path := filepath.Join(dir, "leases", name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.Replace(data, []byte("{"), []byte(`{"later":{"x":1},`), 1)
		if !strings.Contains(strings.Join(before, " "), name) {
			data = []byte("spoilt")
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range files(t, filepath.Join(dir, "entries")) {
		if strings.Contains(e, "other") {
			if err := os.WriteFile(filepath.Join(dir, "entries", e, "manifest.json"), []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	n = startNode(t, dir, b)
	wait(t, n, m) // it has taken over by then
	if got := mounts(t, aside); len(got) > 0 || len(files(t, filepath.Join(dir, "aside"))) != 1 {
		t.Errorf("what was set aside stays: %+v", got)
	}
	if s := n.Status(); len(s.Leases) != 1 || s.Leases[0].Target != newer {
		t.Errorf("%+v", s.Leases)
	}
	check(t, spoilt, m)
	if err := n.Unpublish(t.Context(), spoilt); err != nil || len(mounts(t, spoilt)) > 0 {
		t.Errorf("without a lease: %v, %+v", err, mounts(t, spoilt))
	}
	unpublish(t, n, newer)
	if err := unix.Mount("tmpfs", spoilt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.Unpublish(t.Context(), spoilt); !errors.Is(err, fs.ErrExist) || len(mounts(t, spoilt)) != 1 {
		t.Errorf("somebody else's: %v", err)
	}
	nothingLeft(t, n)
}
