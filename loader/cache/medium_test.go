package cache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// tinyMedia does it on a tiny tmpfs, with and without huge pages, and on a tiny disk.
func tinyMedia(t *testing.T, do func(t *testing.T, dir string)) {
	for name, make := range map[string]func(t *testing.T) string{
		"tmpfs":      func(t *testing.T) string { return mount(t, "size=3m") },
		"huge tmpfs": func(t *testing.T) string { return mount(t, "size=8m,huge=always") },
		"ext4": func(t *testing.T) string {
			dir, _ := mounttest.Ext4(t, 8, "")
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) { do(t, make(t)) })
	}
}

// Somebody fills the medium when an entry has its room and no byte yet: it is filled, sealed and synced
// all the same, and what the disk holds is right.
func TestFullInTheMiddle(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	tinyMedia(t, func(t *testing.T, dir string) {
		c := open(t, dir)
		e := entry(t, c, m)
		fill(t, e, m, func(_, chunk int) bool { return chunk == 0 })
		mounttest.Fill(t, dir)
		fill(t, e, m, nil)
		if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
			t.Fatal(err)
		}
		for i := range m.Manifest.Files {
			dropCache(t, e.Path(i))
		}
		checkSealed(t, e, m)
		closing(t, c)
		if _, err := cache.Open(dir, quiet()); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Errorf("the next process: %v", err)
		} else if err != nil {
			oneLine(t, err, "full file system: make room")
		}
	})
}

func dropCache(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// The files of an earlier process may have holes: a restore or a copy made them. Room for them is taken
// before a byte is written, and where there is none that is an error and no fault.
func TestHole(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", map[string]int{"w": 16 * chunk})
	tinyMedia(t, func(t *testing.T, dir string) {
		c := open(t, dir)
		e := entry(t, c, m)
		path := e.Path(0)
		closing(t, c)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 16*chunk); err != nil {
			t.Fatal(err)
		}
		f.Close()
		c = open(t, dir)
		defer closing(t, c)
		mounttest.Fill(t, dir)
		_, err = c.Entries()[0].Chunk(0, 3)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
		oneLine(t, err, "full file system: make room")
	})
}

// A disk that fails turns read-only under a load: the load ends with an error that says so, soon, and
// what was verified before is there. That holds before a file is mapped, and for one that is.
func TestDiskFails(t *testing.T) {
	for name, first := range map[string]func(file, chunk int) bool{
		"between files": func(file, _ int) bool { return file == 0 },
		"within a file": func(file, chunk int) bool { return file == 0 || chunk == 0 },
	} {
		t.Run(name, func(t *testing.T) { diskFails(t, first) })
	}
}

func diskFails(t *testing.T, first func(file, chunk int) bool) {
	dir, device := mounttest.Ext4(t, 8, "errors=remount-ro")
	m := fetchtest.NewModel(t, "org/model", map[string]int{"a": 4 * chunk, "w": 16 * chunk})
	c := open(t, dir)
	e := entry(t, c, m)
	fill(t, e, m, first)
	before := e.Bytes()
	if err := os.WriteFile("/sys/fs/ext4/"+device+"/trigger_fs_error", []byte("test"), 0); err != nil {
		t.Skip("the kernel does not let a test break its disk: ", err)
	}
	engine := fetch.New(fetch.Config{Source: &fetchtest.Memory{Objects: m.Objects}, Log: quiet()})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	load := engine.Start(e)
	<-load.Done()
	oneLine(t, load.Err(), "medium failed")
	if e.Bytes() < before || e.Complete() {
		t.Errorf("%d bytes of %d, complete %v", e.Bytes(), before, e.Complete())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	closing(t, c)
	_, err := cache.Open(dir, quiet())
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("the next process: %v", err)
	}
	oneLine(t, err, "read-only file system")
}

// A file whose mtime was set back after somebody wrote to it is noticed by the time of its inode. What
// no time tells is found by who reads and compares.
func TestAltered(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	c := open(t, dir)
	e := entry(t, c, m)
	fill(t, e, m, nil)
	if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	closing(t, c)
	path := e.Path(0)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for tick := filepath.Join(dir, "tick"); changedAt(t, tick) <= changedAt(t, filepath.Join(filepath.Dir(e.Dir()), "chunks")); {
		write(t, tick, "") // the clock of a file system is coarse
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	patch(t, path, chunk, string(m.Content("a/b/2n")[chunk]^1))
	if err := errors.Join(os.Chmod(path, 0o444), os.Chtimes(path, time.Time{}, st.ModTime())); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	e = c.Entries()[0]
	if e.Complete() {
		t.Error("it is complete")
	}
	if err := fetch.Verify(t.Context(), e.Dir(), m.Manifest, nil); err == nil || !strings.Contains(err.Error(), "a/b/2n") {
		t.Errorf("verify: %v", err)
	}
	if received, rechecked := fill(t, e, m, nil); received != 1 || rechecked != 1 {
		t.Errorf("received %d, rechecked %d", received, rechecked)
	}
	if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	checkSealed(t, e, m)
	closing(t, c)
	c = open(t, dir)
	defer closing(t, c)
	if !c.Entries()[0].Complete() {
		t.Error("an entry that nobody touched is read back")
	}
}

// changedAt returns when a file's inode was changed last, in ns, 0 if there is none.
func changedAt(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return st.Ctim.Nano()
}

// The disk gets a chunk when it is there, and not when the entry is sealed or the kernel thinks of it.
func TestWriteBack(t *testing.T) {
	dir, _ := mounttest.Ext4(t, 64, "")
	m := fetchtest.NewModel(t, "org/model", map[string]int{"w": 64 * chunk})
	c := open(t, dir)
	defer closing(t, c)
	e := entry(t, c, m)
	fill(t, e, m, nil)
	deadline := time.Now().Add(20 * time.Second) // the kernel's own is 30 s
	for dirty := -1; dirty != 0; {
		if dirty = dirtyPages(t, e.Path(0)); time.Now().After(deadline) {
			t.Fatalf("%d pages wait", dirty)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := e.Seal(); err != nil {
		t.Error(err)
	}
}

// dirtyPages returns how many pages of a file have not been given to its disk, see cachestat(2).
func dirtyPages(t testing.TB, path string) int {
	t.Helper()
	stat := cachestat(t, path)
	if stat[0] == 0 {
		t.Fatal("nothing of it is cached")
	}
	return int(stat[1])
}

// cachestat returns how many pages of a file are cached, dirty, under writeback, evicted and recently
// evicted, see cachestat(2).
func cachestat(t testing.TB, path string) (stat [5]uint64) {
	t.Helper()
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var span [2]uint64
	if _, _, err := unix.Syscall6(unix.SYS_CACHESTAT, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0); err != 0 {
		t.Skip("a kernel without cachestat: ", err)
	}
	return stat
}
