package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

// copyOf makes the copy of an entry and takes the chunks that want reports and the copy lacks; it
// returns how many those were.
func copyOf(t *testing.T, c *cache.Cache, e *cache.Entry, want func(file, chunk int) bool) (to *cache.Entry, copied int) {
	t.Helper()
	to, err := c.MakeCopy(e)
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.Manifest().Files {
		for ch := range e.Manifest().ChunksOf(i) {
			if to.Have(i, ch.Index) || want != nil && !want(i, ch.Index) {
				continue
			}
			if err := to.CopyChunk(e, i, ch.Index, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			copied++
		}
	}
	return to, copied
}

func only(t *testing.T, c *cache.Cache, copies int) *cache.Entry {
	t.Helper()
	if len(c.Entries()) != 1 || len(c.Copies()) != copies {
		t.Fatalf("%d entries, %d copies", len(c.Entries()), len(c.Copies()))
	}
	return c.Entries()[0]
}

// A copy is not an entry while there is one in memory, goes on in the next process where it ended, and
// is the entry when memory is empty.
func TestCopy(t *testing.T) {
	mounttest.Need(t)
	dir, _ := mounttest.Ext4(t, 64, "")
	m := fetchtest.NewModel(t, "org/model", sizes())
	both := cache.Media{Use: cache.Both}
	c := openMedia(t, dir, both)
	e := sealed(t, c, m)
	if e.Place().Kind() != cache.Memory || c.Behind().Kind() != cache.Disk || c.Copy(e) != nil {
		t.Fatalf("on %s, behind it %s", e.Place().Kind(), c.Behind().Kind())
	}
	to, copied := copyOf(t, c, e, func(file, chunk int) bool { return chunk == 0 })
	if copied != 5 || c.Copy(e) != to || !c.IsCopy(to) || c.IsCopy(e) || to.Complete() || to.Place() != c.Behind() || entry(t, c, m) != e {
		t.Errorf("%d chunks are copied: %+v", copied, to)
	}
	if again, err := c.MakeCopy(e); again != to || err != nil {
		t.Errorf("%p, not %p, %v", again, to, err)
	}
	only(t, c, 1)
	closing(t, c)

	c = openMedia(t, dir, both)
	e = only(t, c, 1)
	checkSealed(t, e, m)
	to, copied = copyOf(t, c, e, nil)
	if copied != 2 || !to.Filled() || to.Durable() {
		t.Errorf("%d chunks were lacking: %+v", copied, to)
	}
	if err := errors.Join(to.Seal(), to.Sync(t.Context())); err != nil || !to.Durable() {
		t.Fatal(err)
	}
	for i := range m.Manifest.Files {
		if n := cachedPages(t, to.Path(i)); n > 0 {
			t.Errorf("%d pages of %s are in memory twice", n, m.Manifest.Files[i].Path)
		}
	}
	checkFiles(t, to, m)
	closing(t, c)

	// A process that wants no copies keeps the ones that are there.
	c = openMedia(t, dir, cache.Media{Use: cache.Auto})
	if e = only(t, c, 1); c.Behind() != nil || c.Copy(e) == nil || e.Place().Kind() != cache.Memory {
		t.Errorf("behind it %v, on %s", c.Behind(), e.Place().Kind())
	}
	to = c.Copy(e)
	if err := c.Remove(e); err != nil {
		t.Fatal(err)
	}
	if only(t, c, 0) != to || c.IsCopy(to) || c.Copy(to) != nil || entry(t, c, m) != to {
		t.Error("the copy is not the entry")
	}
	checkSealed(t, to, m)
	if err := c.Remove(e); err == nil {
		t.Error("it was removed twice")
	}
	closing(t, c)
	c = openMedia(t, dir, both)
	checkSealed(t, only(t, c, 0), m)
	if _, err := c.MakeCopy(c.Entries()[0]); err == nil {
		t.Error("what is on the disk is copied to the disk")
	}
	closing(t, c)
}

// cachedPages returns how many pages of a file are in the page cache, see cachestat(2).
func cachedPages(t *testing.T, path string) int {
	t.Helper()
	stat := cachestat(t, path)
	return int(stat[0])
}

// A reboot while a copy is made leaves what of it reached the disk, to be read back before it counts.
func TestCopyAfterReboot(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	c := openMedia(t, dir, cache.Media{Use: cache.Both})
	copyOf(t, c, sealed(t, c, m), func(file, chunk int) bool { return chunk == 0 })
	closing(t, c)
	if err := unix.Unmount(filepath.Join(dir, "memory"), 0); err != nil {
		t.Fatal(err)
	}
	reboot(t, dir)
	c = openMedia(t, dir, cache.Media{Use: cache.Both})
	defer closing(t, c)
	e := only(t, c, 0)
	if e.Complete() || e.Bytes() != 0 || e.Place().Kind() != cache.Disk {
		t.Errorf("%d bytes on %s", e.Bytes(), e.Place().Kind())
	}
	if received, rechecked := fill(t, e, m, nil); received != 2 || rechecked != 5 {
		t.Errorf("received %d, rechecked %d", received, rechecked)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	checkSealed(t, e, m)
}

// Bytes that are not the manifest's are named, and never count; nor does a copy without room leave anything.
func TestBadCopy(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir, _ := mounttest.Ext4(t, 64, "")
	c := openMedia(t, dir, cache.Media{Use: cache.Both})
	defer closing(t, c)
	e := sealed(t, c, m)
	if err := os.Chmod(e.Path(0), 0o644); err != nil { // a/b/2n
		t.Fatal(err)
	}
	patch(t, e.Path(0), chunk, string(m.Content("a/b/2n")[chunk]^1))
	to, _ := copyOf(t, c, e, func(file, _ int) bool { return file != 0 })
	err := errors.Join(to.CopyChunk(e, 0, 0, make([]byte, chunk)), to.CopyChunk(e, 0, 1, make([]byte, chunk)))
	var mismatch *manifest.MismatchError
	if !errors.As(err, &mismatch) || mismatch.Path != "a/b/2n" || mismatch.Offset != chunk || to.Have(0, 1) || !to.Have(0, 0) {
		t.Errorf("%v", err)
	}
	if err := c.Remove(to); err != nil {
		t.Fatal(err)
	}
	if only(t, c, 0) != e || !e.Complete() {
		t.Error("the entry in memory has gone")
	}
	full, err := os.Create(filepath.Join(dir, "full"))
	if err == nil {
		room, roomErr := c.Behind().Room()
		err = errors.Join(roomErr, unix.Fallocate(int(full.Fd()), 0, 0, int64(room.Available)-chunk), full.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.MakeCopy(e); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	only(t, c, 0)
	if names, err := os.ReadDir(filepath.Join(dir, "entries")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestBothInMemory(t *testing.T) {
	dir := mount(t, "size=16m")
	_, err := cache.OpenMedia(dir, cache.Media{Use: cache.Both}, quiet())
	oneLine(t, err, "is on a tmpfs, which is memory", "another medium than both")
}
