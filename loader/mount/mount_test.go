package mount_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

func TestMain(m *testing.M) { mounttest.Main(m) }

func source(t *testing.T) string {
	t.Helper()
	mounttest.Need(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func at(t *testing.T, target string) *mount.Point {
	t.Helper()
	p, err := mount.At(target)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBind(t *testing.T) {
	dir, target := source(t), filepath.Join(t.TempDir(), "a b\\c#")
	created, err := mount.Prepare(target)
	if err != nil || !created {
		t.Fatalf("%v, %v", created, err)
	}
	if created, err := mount.Prepare(target); err != nil || created {
		t.Fatalf("again: %v, %v", created, err)
	}
	if p := at(t, target); p != nil {
		t.Fatalf("mounted before: %+v", p)
	}
	if err := mount.Bind(dir, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	p := at(t, target)
	if p == nil || !p.ReadOnly() || !strings.Contains(p.Options, "nosuid,nodev") || p.Dead() {
		t.Errorf("%+v", p)
	}
	if got, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), nil, 0o644); err != nil {
		t.Errorf("the source has become read-only: %v", err)
	}
	if _, err := mount.Prepare(target); !errors.Is(err, fs.ErrExist) {
		t.Errorf("preparing what is mounted: %v", err)
	}
	open, err := os.Open(filepath.Join(target, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for range 2 { // the first time it is in use, the second time it is not mounted
		if err := mount.Unmount(target); err != nil {
			t.Error(err)
		}
		if p := at(t, target); p != nil {
			t.Errorf("still there: %+v", p)
		}
	}
	if err := mount.Unmount(filepath.Join(target, "missing")); err != nil {
		t.Errorf("a target that does not exist: %v", err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	for _, d := range []string{"full/x", "real"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"link", "dangling"} {
		if err := os.Symlink(map[string]string{"link": "real", "dangling": "nothing"}[l], filepath.Join(dir, l)); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(dir, "foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o755), unix.Mount("tmpfs", foreign, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(foreign, unix.MNT_DETACH) })
	for target, want := range map[string]error{
		"":                                    fs.ErrInvalid,
		"relative":                            fs.ErrInvalid,
		"/":                                   fs.ErrInvalid,
		dir + "/a/../b":                       fs.ErrInvalid,
		dir + "/a/":                           fs.ErrInvalid,
		dir + "/a\x00b":                       fs.ErrInvalid,
		dir + strings.Repeat("/aaaaaaa", 600): fs.ErrInvalid,
		dir + "/" + strings.Repeat("a", 300):  syscall.ENAMETOOLONG,
		dir + "/missing/leaf":                 fs.ErrNotExist,
		dir + "/file":                         fs.ErrExist,
		dir + "/file/leaf":                    syscall.ENOTDIR,
		dir + "/full":                         fs.ErrExist,
		dir + "/link":                         fs.ErrInvalid,
		dir + "/link/leaf":                    fs.ErrInvalid,
		dir + "/dangling":                     fs.ErrInvalid,
		foreign:                               fs.ErrExist,
	} {
		created, err := mount.Prepare(target)
		if created || !errors.Is(err, want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.100q: %v, %v; want %v", target, created, err, want)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "mine" {
		t.Errorf("the file became %q, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 6 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSupported(t *testing.T) {
	err := mount.Supported()
	if os.Geteuid() == 0 && err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 && !errors.Is(err, mount.ErrUnsupported) {
		t.Error(err)
	}
}

// TestTop has mounts that lie on each other.
func TestTop(t *testing.T) {
	dir, target := source(t), t.TempDir()
	t.Cleanup(func() {
		for mount.Unmount(target); at(t, target) != nil; {
			mount.Unmount(target)
		}
	})
	if err := unix.Mount("below", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := mount.Bind(dir, target); err != nil {
		t.Fatal(err)
	}
	if p := at(t, target); p == nil || p.Source == "below" {
		t.Errorf("on top is %+v", p)
	}
	if err := mount.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if p := at(t, target); p == nil || p.Source != "below" {
		t.Errorf("then is %+v", p)
	}
}
