package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// own is the directory below a fetched model's that is headstart's.
const own = ".headstart"

// OpenDir returns an entry whose files end in dir itself. While it is loading, its files and its
// state are in dir/.headstart; Seal moves the files to their places, so a file that is there under
// its name is whole and verified. The manifest and the state stay in dir/.headstart: a later OpenDir
// finds the entry complete, and whoever wants to verify dir has the manifest.
//
// Files that are not of this model stay as they are. A file of the same name that was not fetched
// for this manifest, or was changed since, is an error that wraps fs.ErrExist, as is another model
// that was fetched here; another model's unfinished files are dropped. EBUSY: another process is
// fetching into dir. The caller closes the entry.
func OpenDir(dir string, m *manifest.Manifest, raw []byte) (*Entry, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, fail(fs.ErrExist, "%s exists and is not a directory: give another one", dir)
	}
	state := filepath.Join(dir, own)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, explain(dir, err)
	}
	md, err := probe(state)
	if err != nil {
		_ = os.Remove(state) // it stays if something is in it
		return nil, err
	}
	held, err := lock(filepath.Join(state, "lock"))
	if err != nil {
		return nil, err
	}
	e, err := openDir(dir, m, raw, md)
	if err != nil {
		leaveNothing(state)
		return nil, errors.Join(err, held.Close())
	}
	e.held = held
	return e, nil
}

// leaveNothing removes the lock and the directory state if nothing else is in it.
func leaveNothing(state string) {
	if names, err := os.ReadDir(state); err == nil && len(names) == 1 {
		_ = os.Remove(filepath.Join(state, "lock"))
		_ = os.Remove(state)
	}
}

func openDir(dir string, m *manifest.Manifest, raw []byte, md medium) (*Entry, error) {
	state := filepath.Join(dir, own)
	old, err := load(state, dir, md)
	switch {
	case err == nil && bytes.Equal(old.raw, raw):
		return old, old.resume()
	case err == nil && old.wasSealed():
		return nil, fail(fs.ErrExist, "%s holds %s already: give another directory or empty this one", dir, old.m.Model)
	}
	// Nothing, or something unfinished that nobody has seen.
	e := newEntry(state, dir, m, raw, md)
	if err := e.checkPlaces(); err != nil {
		return nil, err
	}
	if err := e.clear(); err != nil {
		return nil, err
	}
	if err := e.create(); err != nil {
		return nil, errors.Join(err, e.clear())
	}
	return e, nil
}

// wasSealed reports whether the entry on disk was complete once.
func (e *Entry) wasSealed() bool {
	f, err := os.Open(filepath.Join(e.dir, "chunks"))
	if err != nil {
		return false
	}
	defer f.Close()
	head, _, err := readState(f, e.sum, len(e.chunks))
	return err == nil && !head.stamp.IsZero()
}

// clear removes what an unfinished entry left, but for the lock.
func (e *Entry) clear() error {
	for _, name := range []string{"manifest.json", "chunks"} {
		if err := os.Remove(filepath.Join(e.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return explain(e.dir, err)
		}
	}
	return removeTree(e.dest, own, "data")
}

// checkPlaces reports what stands where a file of the entry will go.
func (e *Entry) checkPlaces() error {
	root, err := os.OpenRoot(e.dest)
	if err != nil {
		return explain(e.dest, err)
	}
	defer root.Close()
	for i := range e.m.Files {
		if err := e.checkPlace(root, e.m.Files[i].Path); err != nil {
			return err
		}
	}
	return nil
}

func (e *Entry) checkPlace(root *os.Root, name string) error {
	_, err := root.Lstat(filepath.FromSlash(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		return fail(fs.ErrExist, "%s exists and was not fetched by headstart: move it away or give another directory", filepath.Join(e.dest, name))
	case errors.Is(err, unix.ENOTDIR):
		return fail(fs.ErrExist, "%s: a file stands where a directory must be: move it away or give another directory", filepath.Join(e.dest, name))
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if st, err := os.Lstat(filepath.Join(e.dest, dir)); err == nil && st.Mode().Type() == fs.ModeSymlink {
			return fail(fs.ErrExist, "%s is a link out of the directory: move it away or give another directory", filepath.Join(e.dest, dir))
		}
	}
	return explain(e.dest, err)
}

// moveIn moves the files from data to their places in dest.
func (e *Entry) moveIn() error {
	root, err := os.OpenRoot(e.dest)
	if err != nil {
		return err
	}
	defer root.Close()
	for i := range e.files {
		if e.files[i].placed {
			continue
		}
		name := e.m.Files[i].Path
		if err := e.checkPlace(root, name); err != nil {
			return err
		}
		if err := root.MkdirAll(filepath.FromSlash(path.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := root.Rename(filepath.Join(own, "data", filepath.FromSlash(name)), filepath.FromSlash(name)); err != nil {
			return err
		}
		e.files[i].placed = true
	}
	return nil
}

// Close releases the entry and, if it is one of OpenDir, its directory. No load may be running.
func (e *Entry) Close() error {
	err := e.Release()
	if e.held != nil {
		err = errors.Join(err, e.held.Close())
		e.held = nil
	}
	return err
}

// FetchedDir returns the manifest, parsed and as it stands, of the model that was fetched to dir by
// way of [OpenDir]. The error wraps fs.ErrNotExist if there is none.
func FetchedDir(dir string) (*manifest.Manifest, []byte, error) {
	raw, err := readManifest(filepath.Join(dir, own, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fail(fs.ErrNotExist, "%s holds no model that headstart fetched", dir)
	}
	if err != nil {
		return nil, nil, explain(dir, err)
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(dir, own, "manifest.json"), err)
	}
	return m, raw, nil
}
