package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	fuse "github.com/hanwen/go-fuse/v2/fs"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

// An entry from its making to its end, and what the next process finds.
func TestEntry(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	c := open(t, dir)
	e := entry(t, c, m)
	id := "org--model@093f9f388b31-" + manifest.Sum(m.Raw).String()[:32]
	if e.ID() != id || e.Dir() != filepath.Join(dir, "entries", id, "data") {
		t.Errorf("%s in %s", e.ID(), e.Dir())
	}
	if other := entry(t, c, m); other != e || len(c.Entries()) != 1 {
		t.Error("two entries of one manifest")
	}
	for i, f := range m.Manifest.Files {
		st, err := os.Stat(e.Path(i))
		if err != nil || st.Size() != f.Size || st.Sys().(*syscall.Stat_t).Blocks*512 < f.Size {
			t.Errorf("%s before its first byte: %v %v", f.Path, st, err)
		}
		if want := f.Size == 0; e.FileComplete(i) != want {
			t.Errorf("%s complete: %v", f.Path, !want)
		}
	}
	if e.Filled() || e.Complete() || e.Bytes() != 0 {
		t.Error("it is complete before its first byte")
	}
	if n, _ := fill(t, e, m, nil); n != 7 || !e.Filled() || e.Complete() || e.Bytes() != m.Manifest.Size() {
		t.Errorf("%d chunks, filled %v, complete %v, %d bytes", n, e.Filled(), e.Complete(), e.Bytes())
	}
	for range 2 {
		if err := e.Seal(); err != nil {
			t.Fatal(err)
		}
	}
	checkSealed(t, e, m)
	closing(t, c)

	c = open(t, dir)
	defer closing(t, c)
	if len(c.Entries()) != 1 {
		t.Fatalf("%d entries", len(c.Entries()))
	}
	checkSealed(t, c.Entries()[0], m)
	e = entry(t, c, m)
	if err := c.Remove(e); err != nil {
		t.Error(err)
	}
	if err := c.Remove(e); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing it again: %v", err)
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"entries", "lock", "version"}) {
		t.Errorf("left: %q", got)
	}
}

func checkSealed(t *testing.T, e *cache.Entry, m *fetchtest.Model) {
	t.Helper()
	if !e.Complete() || e.Bytes() != m.Manifest.Size() || !bytes.Equal(e.Raw(), m.Raw) {
		t.Error("it is not complete")
	}
	checkFiles(t, e, m)
	err := filepath.WalkDir(e.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o555, false: 0o444}[d.IsDir()]; err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v", path, st.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	f, err := e.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("what Open gives can be written to")
	}
}

// reboot makes a cache's entries ones of an earlier boot.
func reboot(t *testing.T, dir string) {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(dir, "entries", "*", "chunks"))
	if err != nil || len(states) == 0 {
		t.Fatal(states, err)
	}
	for _, path := range states {
		patch(t, path, cache.BootAt, "00000000-0000")
	}
}

// patch overwrites bytes of a file.
func patch(t *testing.T, path string, off int64, b string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(b), off); err != nil {
		t.Fatal(err)
	}
}

// What an earlier boot recorded counts after it was read back, and only if its bytes are right.
func TestReboot(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	for name, c := range map[string]struct {
		chunks    func(file, chunk int) bool // received before
		seal      bool
		sync      bool
		reboots   int
		flip      bool // the first byte of config.json
		rechecked int
		received  int
		complete  bool
	}{
		"same boot":          {chunks: func(f, c int) bool { return f%2 == 0 }, rechecked: 0, received: 2},
		"half":               {chunks: func(f, c int) bool { return f%2 == 0 }, reboots: 1, rechecked: 5, received: 2},
		"half, twice":        {chunks: func(f, c int) bool { return f%2 == 0 }, reboots: 2, rechecked: 5, received: 2},
		"sealed":             {seal: true, complete: true},
		"sealed, not synced": {seal: true, reboots: 1, rechecked: 7},
		"sealed, lost":       {seal: true, reboots: 1, flip: true, rechecked: 6, received: 1},
		"synced":             {seal: true, sync: true, reboots: 1, complete: true},
		"synced, twice":      {seal: true, sync: true, reboots: 2, complete: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := open(t, dir)
			e := entry(t, k, m)
			before, _ := fill(t, e, m, c.chunks)
			if c.seal {
				if err := e.Seal(); err != nil {
					t.Fatal(err)
				}
			}
			if c.sync {
				if err := e.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if c.flip {
				st, err := os.Stat(e.Path(4))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(e.Path(4), 0o644); err != nil {
					t.Fatal(err)
				}
				patch(t, e.Path(4), 0, string(m.Content("config.json")[0]^1))
				if err := os.Chtimes(e.Path(4), st.ModTime(), st.ModTime()); err != nil {
					t.Fatal(err)
				}
			}
			for range c.reboots {
				closing(t, k)
				reboot(t, dir)
				k = open(t, dir)
			}
			if c.reboots == 0 {
				closing(t, k)
				k = open(t, dir)
			}
			defer closing(t, k)
			e = k.Entries()[0]
			if e.Complete() != c.complete {
				t.Errorf("complete: %v", e.Complete())
			}
			received, rechecked := fill(t, e, m, nil)
			if received != c.received || rechecked != c.rechecked {
				t.Errorf("of %d it received %d again and rechecked %d, want %d and %d", before, received, rechecked, c.received, c.rechecked)
			}
			if err := e.Seal(); err != nil {
				t.Fatal(err)
			}
			checkSealed(t, e, m)
		})
	}
}

// A file of a complete entry that somebody wrote to is noticed; the others are not read again.
func TestChanged(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	c := open(t, dir)
	e := entry(t, c, m)
	fill(t, e, m, nil)
	if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	closing(t, c)
	if err := os.Chmod(e.Path(0), 0o644); err != nil { // a/b/2n
		t.Fatal(err)
	}
	patch(t, e.Path(0), chunk, string(m.Content("a/b/2n")[chunk]^1))
	c = open(t, dir)
	defer closing(t, c)
	e = c.Entries()[0]
	if e.Complete() {
		t.Error("it is complete")
	}
	if received, rechecked := fill(t, e, m, nil); received != 1 || rechecked != 1 {
		t.Errorf("received %d, rechecked %d", received, rechecked)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	checkSealed(t, e, m)
}

// What cannot be served is moved aside, with a line in the log, and the rest is served.
func TestAside(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	good := fetchtest.NewModel(t, "org/good", sizes())
	for name, damage := range map[string]func(t *testing.T, dir string){
		"no manifest":      func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "manifest.json")) },
		"another manifest": func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "manifest.json"), string(good.Raw)) },
		"broken manifest":  func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "manifest.json"), "{") },
		"file missing":     func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "data/a/n")) },
		"file longer":      func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "data/config.json"), "ab") },
		"symlink": func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, "data/config.json"))
			if err := os.Symlink("/etc/hostname", filepath.Join(dir, "data/config.json")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir)
			e := entry(t, c, m)
			fill(t, entry(t, c, good), good, nil)
			closing(t, c)
			damage(t, filepath.Dir(e.Dir()))
			write(t, filepath.Join(dir, "entries", "foreign", "file"), "of somebody")
			var log bytes.Buffer
			c, err := cache.Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer closing(t, c)
			if len(c.Entries()) != 1 || c.Entries()[0].Manifest().Model.Repo != "org/good" || c.Entries()[0].Bytes() != good.Manifest.Size() {
				t.Errorf("%d entries", len(c.Entries()))
			}
			names, err := os.ReadDir(filepath.Join(dir, "aside"))
			if err != nil || len(names) != 2 || names[0].Name() != "foreign.1" || names[1].Name() != e.ID()+".1" {
				t.Errorf("%v %v", names, err)
			}
			if strings.Count(log.String(), "set aside") != 2 {
				t.Error(log.String())
			}
			fill(t, entry(t, c, m), m, nil) // there is room for a new one under its name
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, content string) {
	t.Helper()
	remove(t, path)
	write(t, path, content)
}

// A record of chunks that is lost or of something else costs a check of every chunk, not the entry.
func TestRecordLost(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	for name, damage := range map[string]func(t *testing.T, path string){
		"missing": func(t *testing.T, path string) { remove(t, path) },
		"empty":   func(t *testing.T, path string) { replace(t, path, "") },
		"foreign": func(t *testing.T, path string) { patch(t, path, 0, "something else") },
		"cut": func(t *testing.T, path string) {
			if err := os.Truncate(path, 130); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir)
			e := entry(t, c, m)
			fill(t, e, m, func(file, _ int) bool { return file != 0 })
			closing(t, c)
			damage(t, filepath.Join(filepath.Dir(e.Dir()), "chunks"))
			c = open(t, dir)
			defer closing(t, c)
			e = c.Entries()[0]
			if received, rechecked := fill(t, e, m, nil); received != 2 || rechecked != 5 {
				t.Errorf("received %d, rechecked %d", received, rechecked)
			}
			if err := e.Seal(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Entries that were being made or removed leave nothing.
func TestUnfinished(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "entries", ".new-x", "data", "f"), "")
	write(t, filepath.Join(dir, "entries", ".removed-x", "data", "f"), "")
	closing(t, open(t, dir))
	if got := tree(t, dir); !slices.Equal(got, []string{"entries", "lock", "version"}) {
		t.Errorf("left: %q", got)
	}
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	_, err := cache.Open(dir, quiet())
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "cache directory "+dir, fmt.Sprint("process ", os.Getpid()))
	closing(t, c)
	closing(t, open(t, dir))
}

func TestVersion(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "version"), "headstart cache 2\n")
	write(t, filepath.Join(dir, "entries", "x", "y"), "z")
	_, err := cache.Open(dir, quiet())
	oneLine(t, err, "another version", "headstart cache 2")
	if got := tree(t, dir); !slices.Equal(got, []string{"entries", "entries/x", "entries/x/y", "lock", "version"}) {
		t.Errorf("%q", got)
	}
}

// A file that a crash left empty, and a new one that never took its place, stop nobody.
func TestVersionLost(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "version"), "")
	write(t, filepath.Join(dir, "version.new"), "headstart cache 1 and some more")
	closing(t, open(t, dir))
	b, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil || string(b) != "headstart cache 1\n" {
		t.Errorf("%q, %v", b, err)
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"entries", "lock", "version"}) {
		t.Errorf("left: %q", got)
	}
}

// A manifest never gets another one's entry, whatever the ID says.
func TestCollision(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	c := open(t, t.TempDir())
	defer closing(t, c)
	entry(t, c, m).Collide()
	_, err := c.Entry(m.Manifest, m.Raw)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "of another manifest")
}

// The longest name, with a prefix before it, is still a file's name.
func TestLongestID(t *testing.T) {
	m := fetchtest.NewModel(t, strings.Repeat("o", 96)+"/"+strings.Repeat("n", 96), map[string]int{"w": 1})
	c := open(t, t.TempDir())
	defer closing(t, c)
	if err := c.Remove(entry(t, c, m)); err != nil {
		t.Error(err)
	}
}

func TestNotADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "content")
	_, err := cache.Open(path, quiet())
	oneLine(t, err, path, "not a directory")
}

// Without enough room, nothing is begun, and the error has the numbers.
func TestNoRoom(t *testing.T) {
	dir := mount(t, "size=1m,nr_inodes=100")
	small := fetchtest.NewModel(t, "org/small", map[string]int{"w": 8 * chunk})
	large := fetchtest.NewModel(t, "org/large", map[string]int{"a/b": 3, "w": 12 * chunk})
	c := open(t, dir)
	fill(t, entry(t, c, small), small, nil)
	before := tree(t, dir)
	_, err := c.Entry(large.Manifest, large.Raw)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "org/large@", fmt.Sprintf("needs %d bytes", 4096+12*chunk), "available in "+dir)
	huge := *large.Manifest
	huge.Files = []manifest.File{{Path: "x", Size: math.MaxInt64}, {Path: "y", Size: math.MaxInt64}, {Path: "z", Size: math.MaxInt64}}
	_, err = c.Entry(&huge, large.Raw)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	if after := tree(t, dir); !slices.Equal(before, after) {
		t.Errorf("left: %q", after)
	}
	if strings.Contains(err.Error(), "entries") || strings.Contains(err.Error(), "aside") {
		t.Errorf("%q", err)
	}
	write(t, filepath.Join(dir, "aside", "x.1", "y"), "z")
	_, err = c.Entry(large.Manifest, large.Raw)
	oneLine(t, err, "available in "+dir+"; 4096 bytes are in "+filepath.Join(dir, "aside")+",")
	if _, err := cache.OpenDir(filepath.Join(dir, "new"), large.Manifest, large.Raw); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	closing(t, c)

	// Now not even a byte is left.
	write(t, filepath.Join(dir, "filler"), "")
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	_, err = cache.Open(dir, quiet())
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "cache directory "+dir, "full file system")
}

func TestReadOnly(t *testing.T) {
	dir := mount(t, "size=1m")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	m := fetchtest.NewModel(t, "org/model", sizes())
	_, err := cache.Open(dir, quiet())
	_, err2 := cache.OpenDir(dir, m.Manifest, m.Raw)
	for _, err := range []error{err, err2} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%v", err)
		}
		oneLine(t, err, dir, "read-only file system: use")
	}
	_, err = cache.Open(filepath.Join(dir, "below"), quiet())
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("%v", err)
	}
}

func TestFUSE(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting FUSE needs root here")
	}
	under, dir := t.TempDir(), t.TempDir()
	root, err := fuse.NewLoopbackRoot(under)
	if err != nil {
		t.Fatal(err)
	}
	server, err := fuse.Mount(dir, root, &fuse.Options{})
	if err != nil {
		t.Skip("this environment does not mount FUSE: ", err)
	}
	defer func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	_, err = cache.Open(dir, quiet())
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, dir+" is on FUSE", "use a directory on a local disk")
	if got := tree(t, under); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// A manifest that was not checked gets no file outside its entry.
func TestEscape(t *testing.T) {
	for _, path := range []string{"../x", "a/../../x", "/x", ""} {
		m := fetchtest.NewModel(t, "org/model", map[string]int{"config.json": 5})
		m.Manifest.Files[0].Path = path
		dir := t.TempDir()
		c := open(t, dir)
		if _, err := c.Entry(m.Manifest, m.Raw); err == nil {
			t.Errorf("%q is accepted", path)
		}
		closing(t, c)
		if got := tree(t, dir); !slices.Equal(got, []string{"entries", "lock", "version"}) {
			t.Errorf("%q left: %q", path, got)
		}
	}
}

// Descriptors and mappings are those of the entries that are being received, and no more.
func TestLeaks(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	c := open(t, t.TempDir())
	defer closing(t, c)
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc: ", err)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds), strings.Count(string(maps), c.Dir())
	}
	fds, _ := count()
	for range 20 {
		e := entry(t, c, m)
		fill(t, e, m, func(file, chunk int) bool { return chunk == 0 })
		if _, maps := count(); maps != 2 { // the two files of two chunks
			t.Errorf("%d mappings", maps)
		}
		if err := e.Release(); err != nil {
			t.Fatal(err)
		}
		if f, maps := count(); f > fds+1 || maps != 0 {
			t.Errorf("%d descriptors after %d, %d mappings", f, fds, maps)
		}
		fill(t, e, m, nil)
		if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
			t.Fatal(err)
		}
		if f, maps := count(); f > fds+1 || maps != 0 {
			t.Errorf("%d descriptors after %d, %d mappings", f, fds, maps)
		}
		if err := c.Remove(e); err != nil {
			t.Fatal(err)
		}
	}
}

// After a sync that failed, every chunk is read back before the entry is complete again, by this
// process and by the next one.
func TestSyncFails(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	for name, again := range map[string]bool{"this process": false, "the next process": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir)
			defer func() { closing(t, c) }()
			e := entry(t, c, m)
			fill(t, e, m, nil)
			if err := e.Seal(); err != nil {
				t.Fatal(err)
			}
			// A device cannot be synced.
			path, away := e.Path(1), filepath.Join(t.TempDir(), "away")
			if err := os.Rename(path, away); err != nil {
				t.Skip("the temporary directory is more than one file system: ", err)
			}
			symlink(t, os.DevNull, path)
			if err := e.Sync(t.Context()); !errors.Is(err, unix.EINVAL) {
				t.Fatalf("%v", err)
			}
			if e.Complete() || e.Filled() || e.Bytes() != 0 {
				t.Error("it is still complete")
			}
			if err := os.Rename(away, path); err != nil {
				t.Fatal(err)
			}
			if again {
				closing(t, c)
				c = open(t, dir)
				e = c.Entries()[0]
			}
			if received, rechecked := fill(t, e, m, nil); received != 0 || rechecked != 7 {
				t.Errorf("received %d, rechecked %d", received, rechecked)
			}
			if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
				t.Fatal(err)
			}
			checkSealed(t, e, m)
		})
	}
}
