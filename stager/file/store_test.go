package file

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	key = "org/name/0123/model.safetensors"
	dir = manifest.Private + "parts/org/name/0123/cafe/"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConform(t *testing.T) {
	stagertest.Conform(t, func(t *testing.T) func() stager.Store {
		dir := t.TempDir()
		return func() stager.Store { return open(t, dir) }
	})
}

// tree lists all files and directories below root, and those that lie in it alone.
func tree(t *testing.T, root string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if path != root {
			all = append(all, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	must(t, err)
	return strings.Join(all, " ")
}

var data = stagertest.Bytes(30_000)

func parts() []stager.Part {
	var ps []stager.Part
	for off := 0; off < len(data); off += 10_000 {
		ps = append(ps, stager.Part{Offset: int64(off), Size: 10_000, CRC32C: crc32.Checksum(data[off:off+10_000], manifest.Castagnoli), Note: []byte("n")})
	}
	return ps
}

func upload3(t *testing.T, s *Store, which ...int) stager.Upload {
	t.Helper()
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	for _, i := range which {
		p := parts()[i]
		must(t, u.Write(t.Context(), p, [][]byte{data[p.Offset : p.Offset+p.Size]}))
	}
	return u
}

// TestNoEmptyDirectoriesAreLeft looks at the directory tree, which a listing does not show.
func TestNoEmptyDirectoriesAreLeft(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	must(t, s.Put(t.Context(), dir+"record", 0, []byte("x")))
	u := upload3(t, s, 0, 1, 2)
	must(t, s.Delete(t.Context(), dir+"record"))
	must(t, u.Commit(t.Context(), parts()))
	must(t, u.Close())
	if got, want := tree(t, root), "org org/name org/name/0123 "+key; got != want {
		t.Errorf("%s", got)
	}
	info, err := os.Stat(filepath.Join(root, key))
	must(t, err)
	if info.Mode().Perm()&0o444 != 0o444 || info.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("%v, %d links", info.Mode(), info.Sys().(*syscall.Stat_t).Nlink)
	}
}

// TestAfterACrash builds each state that a process can die in, and lets another one go on.
func TestAfterACrash(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(t *testing.T, root string)
		left   int // parts that survive
	}{
		"between the data and its line": {func(t *testing.T, root string) {
			f, err := os.OpenFile(filepath.Join(root, dir, "data"), os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte("torn"), 25_000)
			must(t, err)
		}, 2},
		"in the middle of a line": {func(t *testing.T, root string) {
			f, err := os.OpenFile(filepath.Join(root, dir, "journal"), os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteString(`{"offset":20000,"size":10000,"crc`)
			must(t, err)
		}, 2},
		"lines of another file": {func(t *testing.T, root string) {
			must(t, os.WriteFile(filepath.Join(root, dir, "journal"), []byte("{\"offset\":-1,\"size\":10}\n{\"offset\":0,\"size\":99999999}\n{\"offset\":9223372036854775807,\"size\":5}\n{}\n"), 0o644))
		}, 0},
		"the data is damaged": {func(t *testing.T, root string) {
			f, err := os.OpenFile(filepath.Join(root, dir, "data"), os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte("bad"), 15_000)
			must(t, err)
		}, 1},
		"the data is cut":     {func(t *testing.T, root string) { must(t, os.Truncate(filepath.Join(root, dir, "data"), 100)) }, 0},
		"the data is longer":  {func(t *testing.T, root string) { must(t, os.Truncate(filepath.Join(root, dir, "data"), 100_000)) }, 2},
		"the data is gone":    {func(t *testing.T, root string) { must(t, os.Remove(filepath.Join(root, dir, "data"))) }, 0},
		"the journal is gone": {func(t *testing.T, root string) { must(t, os.Remove(filepath.Join(root, dir, "journal"))) }, 0},
		"a put that was not finished": {func(t *testing.T, root string) {
			must(t, os.WriteFile(filepath.Join(root, partsDir, tempPrefix+"x"), []byte("half"), 0o644))
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			must(t, upload3(t, open(t, root), 0, 1).Close())
			test.damage(t, root)
			s := open(t, root)
			u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
			must(t, err)
			if len(u.Parts()) != test.left {
				t.Errorf("%d parts are left, want %d", len(u.Parts()), test.left)
			}
			for _, p := range parts() {
				must(t, u.Write(t.Context(), p, [][]byte{data[p.Offset : p.Offset+p.Size]}))
			}
			must(t, u.Commit(t.Context(), parts()))
			must(t, u.Close())
			must(t, s.Put(t.Context(), "x", 0)) // sweeps
			got, err := os.ReadFile(filepath.Join(root, key))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if got, want := tree(t, root), "org org/name org/name/0123 "+key+" x"; got != want {
				t.Errorf("%s", got)
			}
		})
	}
	t.Run("between the link and the removal", func(t *testing.T) {
		root := t.TempDir()
		must(t, upload3(t, open(t, root), 0, 1, 2).Close())
		must(t, os.MkdirAll(filepath.Join(root, "org/name/0123"), 0o755))
		must(t, os.Link(filepath.Join(root, dir, "data"), filepath.Join(root, key)))
		if _, err := open(t, root).Upload(t.Context(), key, dir, int64(len(data))); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v", err)
		}
		if got, want := tree(t, root), "org org/name org/name/0123 "+key; got != want {
			t.Errorf("%s", got)
		}
		if got, err := os.ReadFile(filepath.Join(root, key)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// TestReservationIsGivenBack opens an upload and writes nothing.
func TestReservationIsGivenBack(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	must(t, upload3(t, s).Close())
	if got := tree(t, root); got != "" {
		t.Errorf("%s", got)
	}
	// After a Commit the names belong to others.
	u := upload3(t, s, 0, 1, 2)
	must(t, u.Commit(t.Context(), parts()))
	must(t, os.Remove(filepath.Join(root, key)))
	other := upload3(t, open(t, root), 0)
	must(t, u.Close())
	must(t, other.Close())
	if u, err := s.Upload(t.Context(), key, dir, int64(len(data))); err != nil || len(u.Parts()) != 1 {
		t.Errorf("%v, %v", u, err)
	} else {
		must(t, u.Close())
	}
}

// TestWaits holds an upload and lets a second process ask for the same one.
func TestWaits(t *testing.T) {
	root := t.TempDir()
	first := upload3(t, open(t, root), 0, 1, 2)
	s := open(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Upload(ctx, key, dir, int64(len(data))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	second := make(chan error)
	go func() {
		_, err := s.Upload(t.Context(), key, dir, int64(len(data)))
		second <- err
	}()
	must(t, first.Commit(t.Context(), parts()))
	must(t, first.Close())
	if err := <-second; !errors.Is(err, fs.ErrExist) {
		t.Errorf("after the first: %v", err)
	}
}

// TestSweepLeavesWhatIsInUse lets one process begin while another is in the middle of a Put.
func TestSweepLeavesWhatIsInUse(t *testing.T) {
	root := t.TempDir()
	name, f, err := open(t, root).temp(t.Context())
	must(t, err)
	defer f.Close()
	must(t, open(t, root).Put(t.Context(), "x", 0, []byte("x")))
	if _, err := os.Stat(filepath.Join(root, name)); err != nil {
		t.Error(err)
	}
}

// TestNamesStayInside follows no symbolic link out of the directory.
func TestNamesStayInside(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	must(t, os.Symlink(outside, filepath.Join(root, "org")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(root, "link")))
	s := open(t, root)
	if _, _, err := s.Get(t.Context(), "link", 100); err == nil {
		t.Error("a link is read")
	}
	if err := s.Put(t.Context(), "org/x", 0, []byte("x")); err == nil {
		t.Error("a linked directory is written to")
	}
	if _, err := s.Upload(t.Context(), "../x", dir, 10); err == nil {
		t.Error("a name leads out")
	}
	if got := tree(t, outside); got != "secret" {
		t.Errorf("outside: %s", got)
	}
}

// TestNoPlace is a directory that is missing, full, read-only or forbidden.
func TestNoPlace(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "create it") {
		t.Errorf("missing: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o644))
	if _, err := New(file); err == nil {
		t.Error("a file is a bucket")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting a small and a read-only file system needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	s, err := New(root)
	must(t, err)
	defer s.Close()
	must(t, s.Put(t.Context(), "there", 0, []byte("x")))
	if err := s.Put(t.Context(), "big", 0, make([]byte, 100_000)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "are free") {
		t.Errorf("a large object on a full disk: %v", err)
	}
	if _, err := s.Upload(t.Context(), key, dir, 100_000); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "100000 bytes") {
		t.Errorf("an upload to a full disk: %v", err)
	}
	if got := tree(t, root); got != "there" {
		t.Errorf("left on the full disk: %s", got)
	}
	must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := s.Put(t.Context(), "small", 0, nil); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("read-only: %v", err)
	}
	if _, err := s.Upload(t.Context(), key, dir, 10); !errors.Is(err, syscall.EROFS) {
		t.Errorf("an upload to a read-only disk: %v", err)
	}
}
