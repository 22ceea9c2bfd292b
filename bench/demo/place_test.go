package demo

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/timeline"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// tmpfs mounts one, or skips the test.
func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("headstart-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mount without root: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// TestRemove has mounts on mounts, one of them in use, and a file in each.
func TestRemove(t *testing.T) {
	parent := t.TempDir()
	p, err := newPlace(parent)
	if err != nil {
		t.Fatal(err)
	}
	outer := p.path("with space and \\", "a")
	tmpfs(t, outer)
	tmpfs(t, filepath.Join(outer, "b"))
	used, err := os.Create(filepath.Join(outer, "b", "used"))
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	tmpfs(t, outer) // over the first
	if err := p.remove(); err != nil {
		t.Error(err)
	}
	if left := names(t, parent); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), parent) {
		t.Errorf("mounts are left:\n%s", table)
	}
}

// TestSweep: the folder of a demo that was killed goes, with its mounts; the others stay.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	alive, err := newPlace(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.remove()
	killed, err := newPlace(parent)
	if err != nil {
		t.Fatal(err)
	}
	killed.lock.Close() // what the kernel does to a process that is gone
	foreign := filepath.Join(parent, prefix+"mine")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(parent, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(parent, prefix+"linked")
	if err := os.Mkdir(linked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(linked, lockFile)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		tmpfs(t, killed.path(mediumDir))
	}
	sweep(parent)
	want := []string{filepath.Base(alive.dir), prefix + "linked", prefix + "mine", "outside"}
	got := names(t, parent)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
}

func TestNoTemporaryDirectory(t *testing.T) {
	if _, err := newPlace(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestRoomError(t *testing.T) {
	err := error(&RoomError{Dir: "/tmp", Free: 5e9, Want: 55e9})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "5.0 GB free") || !strings.Contains(err.Error(), "55.0 GB") {
		t.Errorf("%v", err)
	}
}

func TestRows(t *testing.T) {
	r := Result{StageRate: 100e6, Timeline: []Span{
		{Name: "stage", Start: 0, End: 3},
		{Name: "reader: start", Start: 3.1, End: 3.2}, // ends before the load does, and is noted before
		{Name: "reader: weights", Start: 4.2, End: 4.5},
		{Name: "load", Start: 3.05, End: 4.4},
		{Name: "second reader: start", Start: 5, End: 5.1},
	}}
	var labels []string
	for _, row := range r.Rows() {
		labels = append(labels, row.Label)
		if len(row.Spans) > 0 && row.Note == "" {
			t.Errorf("%s has no note", row.Label)
		}
	}
	want := []string{"stage", "load", "reader", "  start", "  weights", "second reader", "  start"}
	if !slices.Equal(labels, want) {
		t.Errorf("rows %q, want %q", labels, want)
	}
	if err := timeline.Draw(new(strings.Builder), r.Rows(), timeline.Style{Width: 80}); err != nil {
		t.Error(err)
	}
}
