package cache_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

func openDir(t *testing.T, dir string, m *fetchtest.Model) *cache.Entry {
	t.Helper()
	e, err := cache.OpenDir(dir, m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Nothing is in its place before all of it is there, and unrelated files stay.
func TestOpenDir(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := filepath.Join(t.TempDir(), "new", "model")
	write(t, filepath.Join(dir, "notes"), "mine")
	write(t, filepath.Join(dir, "a", "notes"), "mine")
	e := openDir(t, dir, m)
	if e.Dir() != dir {
		t.Errorf("%s, want %s", e.Dir(), dir)
	}
	fill(t, e, m, nil)
	if got := tree(t, dir, ".headstart"); !slices.Equal(got, []string{"a", "a/notes", "notes"}) {
		t.Errorf("before it is sealed: %q", got)
	}
	_, err := cache.OpenDir(dir, m.Manifest, m.Raw)
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "in use")
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, e, m)
	closing(t, e)
	want := []string{
		".headstart", ".headstart/chunks", ".headstart/lock", ".headstart/manifest.json",
		"a", "a/b", "a/b/2n", "a/n", "a/n+1", "a/n-1", "a/notes", "config.json", "empty", "notes",
	}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	e = openDir(t, dir, m)
	if !e.Complete() || e.Bytes() != m.Manifest.Size() {
		t.Error("the second time it is not complete")
	}
	closing(t, e)
	got, raw, err := cache.FetchedDir(dir)
	if err != nil || got.Model != m.Manifest.Model || !bytes.Equal(raw, m.Raw) {
		t.Errorf("%v", err)
	}
	if _, _, err := cache.FetchedDir(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A directory that holds something else under the model's names is refused, and stays as it is.
func TestOpenDirOccupied(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"a file": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "config.json"), "mine") },
		"the same bytes": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "config.json"), string(m.Content("config.json")))
		},
		"a file for a folder": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a"), "mine") },
		"a folder for a file": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "config.json", "x"), "mine") },
		"a link for a file":   func(t *testing.T, dir string) { symlink(t, "/etc/hostname", filepath.Join(dir, "config.json")) },
		"a dangling link":     func(t *testing.T, dir string) { symlink(t, "/nowhere", filepath.Join(dir, "config.json")) },
		"a link for a folder": func(t *testing.T, dir string) { symlink(t, os.TempDir(), filepath.Join(dir, "a")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			prepare(t, dir)
			before := tree(t, dir)
			_, err := cache.OpenDir(dir, m.Manifest, m.Raw)
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("%v", err)
			}
			oneLine(t, err, dir)
			if after := tree(t, dir); !slices.Equal(before, after) {
				t.Errorf("%q became %q", before, after)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "mine")
	if _, err := cache.OpenDir(path, m.Manifest, m.Raw); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// A file that turns up while the model is loading is not overwritten.
func TestOpenDirLate(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	e := openDir(t, dir, m)
	fill(t, e, m, nil)
	write(t, filepath.Join(dir, "config.json"), "mine")
	if err := e.Seal(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	closing(t, e)
	if b, err := os.ReadFile(filepath.Join(dir, "config.json")); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	remove(t, filepath.Join(dir, "config.json"))
	e = openDir(t, dir, m) // with some files in their places already
	if n, _ := fill(t, e, m, nil); n != 0 {
		t.Errorf("%d chunks again", n)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, e, m)
	closing(t, e)
}

// A file that was deleted is fetched again, and no other; one that was changed is its owner's.
func TestOpenDirDamaged(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	dir := t.TempDir()
	e := openDir(t, dir, m)
	fill(t, e, m, nil)
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	closing(t, e)

	remove(t, filepath.Join(dir, "a/n+1"))
	remove(t, filepath.Join(dir, "empty"))
	e = openDir(t, dir, m)
	if received, rechecked := fill(t, e, m, nil); received != 2 || rechecked != 0 {
		t.Errorf("received %d, rechecked %d", received, rechecked)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, e, m)
	closing(t, e)

	// A copy has other times and the right bytes.
	write(t, filepath.Join(dir, "copy"), string(m.Content("a/n")))
	if err := os.Rename(filepath.Join(dir, "copy"), filepath.Join(dir, "a/n")); err != nil {
		t.Fatal(err)
	}
	e = openDir(t, dir, m)
	if received, rechecked := fill(t, e, m, nil); received != 0 || rechecked != 1 {
		t.Errorf("received %d, rechecked %d", received, rechecked)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	closing(t, e)

	replace(t, filepath.Join(dir, "config.json"), "x")
	e = openDir(t, dir, m)
	i := slices.IndexFunc(m.Manifest.Files, func(f manifest.File) bool { return f.Path == "config.json" })
	if ok, err := e.Recheck(i, 0, make([]byte, 100)); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	_, err := e.Chunk(i, 0)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "config.json was changed")
	closing(t, e)
	replace(t, filepath.Join(dir, "config.json"), "longer")
	_, err = cache.OpenDir(dir, m.Manifest, m.Raw)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, "config.json was changed")
}

// Another model that is complete here is left alone; its unfinished rest is not.
func TestOpenDirOther(t *testing.T) {
	a := fetchtest.NewModel(t, "org/a", map[string]int{"config.json": 5})
	b := fetchtest.NewModel(t, "org/b", map[string]int{"config.json": 6})
	dir := t.TempDir()
	closing(t, openDir(t, dir, a))
	e := openDir(t, dir, b)
	fill(t, e, b, nil)
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	closing(t, e)
	_, err := cache.OpenDir(dir, a.Manifest, a.Raw)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	oneLine(t, err, dir+" holds org/b@")
	e = openDir(t, dir, b)
	if !e.Complete() {
		t.Error("it is not complete any more")
	}
	closing(t, e)
}

// Who owns the directory may put a link where headstart's state was: nothing behind it is touched.
func TestOpenDirSwapped(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", map[string]int{"w": 1})
	dir, outside := t.TempDir(), t.TempDir()
	e := openDir(t, dir, m)
	fill(t, e, m, nil)
	victim := filepath.Join(outside, "data", "w")
	write(t, victim, "x")
	if err := os.Chmod(victim, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, ".headstart"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	symlink(t, outside, filepath.Join(dir, ".headstart"))
	if err := e.Seal(); err == nil {
		t.Error("it was sealed")
	}
	if st, err := os.Stat(victim); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("behind the link: %v, %v", st, err)
	}
	closing(t, e)
}
