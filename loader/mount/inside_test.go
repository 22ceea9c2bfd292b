package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

// TestBindInside has the folders on a mount that is shared, as systemd makes all mounts, and on one
// that is private. What was attached before stays as it is when the same folder is used again.
func TestBindInside(t *testing.T) {
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		files := source(t)
		base := t.TempDir()
		if err := errors.Join(unix.Mount("tmpfs", base, "tmpfs", 0, ""), unix.Mount("", base, "", propagation, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(base, unix.MNT_DETACH) })
		frame := filepath.Join(base, "frame")
		if err := errors.Join(os.MkdirAll(frame+"/a/b", 0o755), os.WriteFile(frame+"/ref", []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
		targets := []string{base + "/first", base + "/second"}
		for _, target := range targets {
			if _, err := mount.Prepare(target); err != nil {
				t.Fatal(err)
			}
			if err := mount.BindInside(frame, files, "a/b", target); err != nil {
				t.Fatal(err)
			}
		}
		for _, target := range targets {
			if got, err := os.ReadFile(target + "/a/b/f"); err != nil || string(got) != "content" {
				t.Errorf("%q, %v", got, err)
			}
			for _, p := range []*mount.Point{at(t, target), at(t, target+"/a/b")} {
				if p == nil || !p.ReadOnly() {
					t.Errorf("%+v", p)
				}
			}
			if err := os.WriteFile(target+"/ref", nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("writing: %v", err)
			}
		}
		if p := at(t, frame+"/a/b"); p != nil {
			t.Errorf("left in the frame: %+v", p)
		}
		if err := mount.Unmount(targets[0]); err != nil {
			t.Error(err)
		}
		if a, b := at(t, targets[0]), at(t, targets[0]+"/a/b"); a != nil || b != nil {
			t.Errorf("after unmounting: %+v, %+v", a, b)
		}
		if got, err := os.ReadFile(targets[1] + "/a/b/f"); err != nil || string(got) != "content" {
			t.Errorf("the other one: %q, %v", got, err)
		}
		if err := mount.Unmount(targets[1]); err != nil {
			t.Error(err)
		}
	}
}
