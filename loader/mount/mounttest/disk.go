package mounttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Ext4 makes an ext4 of so many MiB in a file, mounts it with options, and returns where and the name of
// its device, such as "loop3". The test is skipped where that is not possible.
func Ext4(t testing.TB, mib int, options string) (dir, device string) {
	t.Helper()
	Need(t)
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, int64(mib)<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-N", "512", image},
		{"mount", "-o", "loop," + options, image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no disk for a test: %s: %v %s", args[0], err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(fmt.Errorf("unmounting a test's disk: %w", err))
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	return dir, strings.TrimPrefix(strings.TrimSpace(string(out)), "/dev/")
}

// Fill takes all that is left of the file system that dir is on, for a file there.
func Fill(t testing.TB, dir string) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var end int64
	for _, size := range []int64{1 << 20, 64 << 10, 4 << 10, 1 << 10} {
		for unix.Fallocate(int(f.Fd()), 0, end, size) == nil {
			end += size
		}
	}
}
