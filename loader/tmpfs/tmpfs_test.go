package tmpfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/loader/tmpfs"
)

func TestMain(m *testing.M) { mounttest.Main(m) }

func mounted(t *testing.T, dir string, size int64) *tmpfs.Mount {
	t.Helper()
	mounttest.Need(t)
	m, err := tmpfs.Make(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return m
}

// One is made, found by whoever comes next with what is in it, made larger and smaller, and removed.
func TestMount(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "memory")
	if m, err := tmpfs.Find(dir); m != nil || err != nil {
		t.Errorf("before: %+v, %v", m, err)
	}
	m := mounted(t, dir, 16<<20)
	if m.Dir != dir || m.Size != 16<<20 || m.Used != 0 || !m.Ours || m.Huge != "always" {
		t.Errorf("made %+v", m)
	}
	f, err := os.Create(filepath.Join(dir, "model"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 8<<20); err != nil {
		t.Fatal(err)
	}
	again, err := tmpfs.Find(dir)
	if err != nil || again.Size != 16<<20 || again.Used != 8<<20 || !again.Ours || again.Huge != "always" {
		t.Errorf("found %+v, %v", again, err)
	}
	if err := again.Resize(32 << 20); err != nil || again.Size != 32<<20 {
		t.Errorf("larger: %+v, %v", again, err)
	}
	if found, err := tmpfs.Find(dir); err != nil || found.Huge != "always" || found.Size != 32<<20 {
		t.Errorf("larger: %+v, %v", found, err)
	}
	if err := again.Resize(4 << 20); err == nil || again.Size != 32<<20 {
		t.Errorf("smaller than what is used: %+v, %v", again, err)
	}
	if err := again.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("in use: %v", err)
	}
	f.Close()
	if err := again.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// What is in the way is not hidden and not used.
func TestInTheWay(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := tmpfs.Make(dir, 1<<20); err == nil || !strings.Contains(err.Error(), "move them away") {
		t.Errorf("over files: %v", err)
	}
	other := t.TempDir()
	if err := unix.Mount("other", other, "ramfs", 0, ""); err != nil {
		t.Skip("no ramfs: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
	if m, err := tmpfs.Find(other); err == nil {
		t.Errorf("a ramfs is %+v", m)
	}
	theirs := t.TempDir()
	if err := unix.Mount("tmpfs", theirs, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(theirs, unix.MNT_DETACH) })
	if m, err := tmpfs.Find(theirs); err != nil || m.Ours || m.Huge != "never" || m.Size != 1<<20 {
		t.Errorf("somebody's: %+v, %v", m, err)
	}
}

// What a file gets is looked at, not believed.
func TestHugePages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "memory")
	mounted(t, dir, 16<<20)
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("a kernel without huge pages: ", err)
	}
	got, before := "", tmpfs.HugeBytes()
	for range 5 { // other processes take pages too
		_ = os.WriteFile("/proc/sys/vm/compact_memory", []byte("1"), 0) // it is a help, and may be forbidden
		if got = tmpfs.HugePages(dir); got == "yes" {
			break
		}
	}
	if got != "yes" {
		t.Error(got)
	}
	f, err := os.Create(filepath.Join(dir, "model"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 8<<20); err != nil {
		t.Fatal(err)
	}
	if n := tmpfs.HugeBytes(); before < 0 || n <= 0 || n%(2<<20) != 0 {
		t.Errorf("%d bytes in huge pages, %d before", n, before)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "huge=never"); err != nil {
		t.Fatal(err)
	}
	if got := tmpfs.HugePages(dir); got != "no: it is mounted with huge=never" {
		t.Error(got)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if got := tmpfs.HugePages(dir); got != "unknown: it is full" {
		t.Error(got)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}
