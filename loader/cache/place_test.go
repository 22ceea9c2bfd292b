package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/memory"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// plenty is an account of a machine that has more than any test takes.
func plenty() (memory.Account, error) {
	return memory.Account{Total: 1 << 40, Free: 1 << 40, Bound: "the machine"}, nil
}

// openMedia opens a cache on media, with 16 MiB of memory unless they say otherwise.
func openMedia(t *testing.T, dir string, media cache.Media) *cache.Cache {
	t.Helper()
	mounttest.Need(t)
	if media.Account == nil {
		media.Account = plenty
	}
	if media.Memory == 0 && media.Use != cache.Disk {
		media.Memory = 16 << 20
	}
	c, err := cache.OpenMedia(dir, media, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "memory"), unix.MNT_DETACH) })
	return c
}

func sealed(t *testing.T, c *cache.Cache, m *fetchtest.Model) *cache.Entry {
	t.Helper()
	e := entry(t, c, m)
	fill(t, e, m, nil)
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	return e
}

func onTmpfs(t *testing.T, path string) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Type) == unix.TMPFS_MAGIC
}

// An entry in memory outlives its process, whatever the next one wants, and not a reboot. Memory that
// nothing is in is given back.
func TestMemory(t *testing.T) {
	m, other := fetchtest.NewModel(t, "org/model", sizes()), fetchtest.NewModel(t, "org/other", sizes())
	dir := t.TempDir()
	c := openMedia(t, dir, cache.Media{Use: cache.Memory})
	e := sealed(t, c, m)
	if e.Place().Kind() != cache.Memory || e.Place().HugePages() == "" || e.HugeBytes() < 0 || e.HugeBytes() > m.Manifest.Size() || !onTmpfs(t, e.Path(0)) || e.Dir() != filepath.Join(dir, "memory", "entries", e.ID(), "data") {
		t.Errorf("%s on %+v", e.Dir(), e.Place())
	}
	closing(t, c)

	c = openMedia(t, dir, cache.Media{Use: cache.Disk})
	if len(c.Entries()) != 1 || len(c.AllPlaces()) != 2 {
		t.Fatalf("%d entries in %d places", len(c.Entries()), len(c.AllPlaces()))
	}
	checkSealed(t, c.Entries()[0], m)
	if again := entry(t, c, m); again != c.Entries()[0] {
		t.Error("a second entry of one manifest, on another medium")
	}
	if e := sealed(t, c, other); e.Place().Kind() != cache.Disk || onTmpfs(t, e.Path(0)) {
		t.Errorf("%s on %+v", e.Dir(), e.Place())
	}
	closing(t, c)

	c = openMedia(t, dir, cache.Media{Use: cache.Auto})
	for _, e := range c.Entries() {
		checkSealed(t, e, map[string]*fetchtest.Model{e.ID(): other, cache.ID(m.Manifest.Model, e.Sum()): m}[e.ID()])
	}
	if err := c.Remove(entry(t, c, m)); err != nil {
		t.Error(err)
	}
	closing(t, c)
	if _, err := os.Stat(filepath.Join(dir, "memory")); !os.IsNotExist(err) {
		t.Errorf("the memory is still there: %v", err)
	}

	c = openMedia(t, dir, cache.Media{Use: cache.Auto})
	sealed(t, c, m)
	closing(t, c)
	if err := unix.Unmount(filepath.Join(dir, "memory"), 0); err != nil { // a reboot
		t.Fatal(err)
	}
	c = openMedia(t, dir, cache.Media{Use: cache.Auto})
	defer closing(t, c)
	if all := c.Entries(); len(all) != 1 || all[0].Manifest().Model.Repo != "org/other" {
		t.Errorf("%d entries", len(all))
	}
}

// What fits into memory goes there, the rest to the disk; memory alone refuses with the numbers.
func TestAuto(t *testing.T) {
	small := fetchtest.NewModel(t, "org/small", map[string]int{"w": 8 * chunk})
	large := fetchtest.NewModel(t, "org/large", map[string]int{"w": 12 * chunk})
	free := int64(8 * chunk)
	account := func() (memory.Account, error) {
		return memory.Account{Total: 1 << 40, Free: free, Bound: "the cgroup /x", Spared: 77}, nil
	}
	dir := t.TempDir()
	c := openMedia(t, dir, cache.Media{Use: cache.Auto, Account: account})
	if k := entry(t, c, small).Place().Kind(); k != cache.Memory {
		t.Errorf("what fits is on %s", k)
	}
	if k := entry(t, c, large).Place().Kind(); k != cache.Disk {
		t.Errorf("what does not fit is on %s", k)
	}
	closing(t, c)
	other := t.TempDir()
	c = openMedia(t, other, cache.Media{Use: cache.Memory, Account: account})
	defer closing(t, c)
	_, err := c.Entry(large.Manifest, large.Raw)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "needs 786432 bytes, but only 524288 are available in "+filepath.Join(other, "memory")+" by the memory of the cgroup /x, of which 77 bytes are left to others")
	if names, err := os.ReadDir(filepath.Join(other, "memory", "entries")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// A directory that is in memory itself is that memory, bounded by what there is.
func TestDirectoryInMemory(t *testing.T) {
	dir := mount(t, "size=16m")
	c := openMedia(t, dir, cache.Media{Use: cache.Memory, Memory: -1, Account: func() (memory.Account, error) {
		return memory.Account{Total: 1 << 30, Free: 1, Bound: "the machine"}, nil
	}})
	defer closing(t, c)
	m := fetchtest.NewModel(t, "org/model", sizes())
	_, err := c.Entry(m.Manifest, m.Raw)
	oneLine(t, err, "but only 1 are available in "+dir+" by the memory of the machine")
	if len(c.Places()) != 1 || c.Places()[0].Dir() != dir || c.Places()[0].HugePages() != "no: it is mounted with huge=never" {
		t.Errorf("%+v", c.Places()[0])
	}
}

// Who may not mount has the disk, and an error where that is not wanted.
func TestMayNotMount(t *testing.T) {
	mounttest.Need(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	give := drop(t, unix.CAP_SYS_ADMIN)
	defer give()
	dir := t.TempDir()
	c := openMedia(t, dir, cache.Media{Use: cache.Auto})
	if places := c.Places(); len(places) != 1 || places[0].Kind() != cache.Disk {
		t.Errorf("%d places", len(places))
	}
	closing(t, c)
	_, err := cache.OpenMedia(dir, cache.Media{Use: cache.Memory, Account: plenty}, quiet())
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "mounting a tmpfs at "+filepath.Join(dir, "memory"))
	c, err = cache.Open(dir, quiet()) // it is not in use any more
	if err != nil {
		t.Fatal(err)
	}
	closing(t, c)
}

// drop takes a capability from this thread and returns what gives it back.
func drop(t *testing.T, capability int) func() {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&head, &before[0]); err != nil {
		t.Fatal(err)
	}
	after := before
	after[0].Effective &^= 1 << capability
	if err := unix.Capset(&head, &after[0]); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Capset(&head, &before[0]); err != nil {
			panic(err)
		}
	}
}

// A reader that has a file open keeps the memory.
func TestMemoryInUse(t *testing.T) {
	dir := t.TempDir()
	m := fetchtest.NewModel(t, "org/model", sizes())
	c := openMedia(t, dir, cache.Media{Use: cache.Memory})
	e := sealed(t, c, m)
	f, err := e.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.Remove(e); err != nil {
		t.Error(err)
	}
	closing(t, c)
	if !onTmpfs(t, filepath.Join(dir, "memory")) {
		t.Error("it was unmounted under a reader")
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	f.Close()
	closing(t, openMedia(t, dir, cache.Media{Use: cache.Memory, Memory: 32 << 20}))
	if _, err := os.Stat(filepath.Join(dir, "memory")); !os.IsNotExist(err) {
		t.Errorf("the memory is still there: %v", err)
	}
}
