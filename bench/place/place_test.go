package place

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const prefix = "headstart-test-"

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
	p, err := New(parent, prefix)
	if err != nil {
		t.Fatal(err)
	}
	outer := p.Path("with space and \\", "a")
	tmpfs(t, outer)
	tmpfs(t, filepath.Join(outer, "b"))
	used, err := os.Create(filepath.Join(outer, "b", "used"))
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	tmpfs(t, outer) // over the first
	if err := p.Remove(); err != nil {
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

// TestSweep: the folder of a maker that was killed goes, with its mounts; the others stay.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	alive, err := New(parent, prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Remove()
	killed, err := New(parent, prefix)
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
	if err := os.Symlink(outside, filepath.Join(linked, LockFile)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		tmpfs(t, killed.Path("mounted"))
	}
	Sweep(parent, prefix)
	want := []string{filepath.Base(alive.Path()), prefix + "linked", prefix + "mine", "outside"}
	got := names(t, parent)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
}

func TestNoTemporaryDirectory(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "none"), prefix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
