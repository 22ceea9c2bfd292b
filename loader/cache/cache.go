// Package cache keeps models on a node's medium: one entry a model, made before its first byte
// arrives and complete when its last chunk is verified.
//
// A cache directory:
//
//	lock                     held by the daemon that uses the directory; its process id
//	version                  of this layout
//	entries/<id>/
//	    manifest.json        the manifest, byte for byte
//	    chunks               which chunks are verified (see header)
//	    data/…               the model's files under their own names
//	aside/<id>.<n>           what stood in entries and could not be served, for a person to look at
//
// An entry takes its room with fallocate before anything is received, so a full medium is an error
// at the start and never a fault in the middle. Bytes are received straight into a shared mapping of
// the file; a chunk counts once its byte in the file chunks says so, which is written after its bytes
// are verified. What was counted survives the process's death. After the machine's death, which the
// boot's id tells, each counted chunk is suspect and is read back before it counts again, except in
// an entry that was synced.
//
// Manifests come from a bucket that anybody may have written to: their paths are checked when they
// are parsed, and every file is made through an os.Root all the same.
package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/headstart-serving/headstart/manifest"
)

const version = "headstart cache 1\n"

// Cache is a directory of entries. It is safe for concurrent use.
type Cache struct {
	dir    string
	log    *slog.Logger
	lock   *os.File
	medium medium

	making  sync.Mutex // held while an entry is made or removed
	mu      sync.Mutex // guards entries
	entries map[string]*Entry
}

// Open takes a directory, which it makes if there is none, and recovers the entries in it. Dir is the
// path of it without symbolic links.
//
// The error wraps EBUSY if another process has the directory, EROFS, ENOSPC or EDQUOT if it cannot
// be written to, EOPNOTSUPP if it lies on an unfit file system. What is in entries and cannot be
// served is moved aside and logged, never deleted.
func Open(dir string, log *slog.Logger) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cache directory %s: %w", dir, err)
	}
	c := &Cache{dir: dir, log: log, entries: make(map[string]*Entry)}
	if err := c.open(); err != nil {
		if c.lock != nil {
			c.lock.Close()
		}
		return nil, fmt.Errorf("cache directory %w", err)
	}
	return c, nil
}

func (c *Cache) open() error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return explain(c.dir, err)
	}
	real, err := filepath.EvalSymlinks(c.dir) // the kernel's table of mounts has no others
	if err != nil {
		return explain(c.dir, err)
	}
	c.dir = real
	if c.medium, err = probe(c.dir); err != nil {
		return err
	}
	if c.lock, err = lock(filepath.Join(c.dir, "lock")); err != nil {
		return err
	}
	if err := c.checkVersion(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "entries"), 0o755); err != nil {
		return explain(c.dir, err)
	}
	return c.recover()
}

// checkVersion writes the layout's version into a new cache and refuses any other one. An empty file
// counts as none: a crash of the machine may have left it.
func (c *Cache) checkVersion() error {
	path := filepath.Join(c.dir, "version")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return explain(c.dir, c.writeVersion(path))
	}
	if err != nil {
		return explain(c.dir, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return explain(c.dir, err)
	}
	if len(b) == 0 {
		return explain(c.dir, c.writeVersion(path))
	}
	if string(b) != version {
		return fmt.Errorf("%s holds a cache of another version, %q, and this headstart uses %q: use another directory or empty this one",
			c.dir, strings.TrimSpace(string(b)), strings.TrimSpace(version))
	}
	return nil
}

// writeVersion puts the whole file in its place or none, across a crash of the machine too.
func (c *Cache) writeVersion(path string) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(version)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncPath(c.dir)
}

// recover reads the entries that an earlier process left.
func (c *Cache) recover() error {
	dirs, err := os.ReadDir(filepath.Join(c.dir, "entries"))
	if err != nil {
		return explain(c.dir, err)
	}
	for _, d := range dirs {
		dir := filepath.Join(c.dir, "entries", d.Name())
		if strings.HasPrefix(d.Name(), ".") {
			// An entry that was being made, and has no byte yet, or being removed.
			c.log.Info("removing what is left of an unfinished entry", "path", dir)
			if err := removeTree(filepath.Join(c.dir, "entries"), d.Name()); err != nil {
				return err
			}
			continue
		}
		e, err := load(dir, "", c.medium)
		if err == nil && e.id != d.Name() {
			err = fmt.Errorf("the manifest in it is of %s", e.id)
		}
		if err == nil {
			err = e.resume()
		}
		if err != nil {
			if err := c.setAside(d.Name(), err); err != nil {
				return err
			}
			continue
		}
		c.entries[e.id] = e
		c.log.Info("found an entry", "entry", e.id, "complete", e.Complete(), "verified_bytes", e.Bytes(), "size_bytes", e.m.Size())
	}
	return nil
}

// setAside moves what cannot be served out of the way. It is not deleted: it may be worth a look.
func (c *Cache) setAside(name string, why error) error {
	aside := filepath.Join(c.dir, "aside")
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return explain(c.dir, err)
	}
	for n := 1; ; n++ {
		to := filepath.Join(aside, fmt.Sprintf("%s.%d", name, n))
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(filepath.Join(c.dir, "entries", name), to); err != nil {
			return explain(c.dir, err)
		}
		c.log.Warn("set aside an entry that cannot be served; remove it to have its room back", "entry", name, "path", to, "reason", why)
		return nil
	}
}

// Entry finds the entry of a manifest, or makes it with all of its room. raw is the manifest's bytes.
//
// Without enough room the error wraps ENOSPC and says how much is needed and how much there is;
// nothing is left of the attempt.
func (c *Cache) Entry(m *manifest.Manifest, raw []byte) (*Entry, error) {
	c.making.Lock()
	defer c.making.Unlock()
	id := ID(m.Model, manifest.Sum(raw))
	if e := c.find(id); e != nil {
		if sum := manifest.Sum(raw); e.sum != sum {
			// Half a sum can be made to collide; the whole one is what a pin pins.
			return nil, fail(fs.ErrExist, "entry %s in %s is of another manifest, %s, not %s: remove it first", id, c.dir, e.sum, sum)
		}
		return e, nil
	}
	final := filepath.Join(c.dir, "entries", id)
	dir := filepath.Join(c.dir, "entries", ".new-"+id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, explain(c.dir, err)
	}
	e := newEntry(dir, "", m, raw, c.medium)
	if err := e.create(); err != nil {
		return nil, errors.Join(err, removeTree(filepath.Join(c.dir, "entries"), ".new-"+id))
	}
	if err := os.Rename(dir, final); err != nil {
		return nil, errors.Join(explain(c.dir, err), removeTree(filepath.Join(c.dir, "entries"), ".new-"+id))
	}
	e.dir = final
	c.mu.Lock()
	c.entries[id] = e
	c.mu.Unlock()
	return e, nil
}

func (c *Cache) find(id string) *Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[id]
}

// Entries returns all entries in the order of their IDs.
func (c *Cache) Entries() []*Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Entry, 0, len(c.entries))
	for _, e := range c.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *Entry) int { return cmp.Compare(a.id, b.id) })
	return all
}

// Remove deletes an entry and its files. Nobody may be loading it or reading it; who has a file open
// keeps that file.
func (c *Cache) Remove(e *Entry) error {
	c.making.Lock()
	defer c.making.Unlock()
	if c.find(e.id) != e {
		return fmt.Errorf("entry %s is not in the cache: %w", e.id, fs.ErrNotExist)
	}
	if err := e.Release(); err != nil {
		return err
	}
	// The name goes first: a process that dies now leaves nothing that looks like an entry.
	dir := filepath.Join(c.dir, "entries", ".removed-"+e.id)
	if err := os.Rename(e.dir, dir); err != nil {
		return explain(c.dir, err)
	}
	c.mu.Lock()
	delete(c.entries, e.id)
	c.mu.Unlock()
	return removeTree(filepath.Join(c.dir, "entries"), ".removed-"+e.id)
}

// Dir returns the cache's directory.
func (c *Cache) Dir() string { return c.dir }

// Close releases the entries' descriptors and mappings and lets the next process have the directory.
// No load may be running.
func (c *Cache) Close() error {
	var errs []error
	for _, e := range c.Entries() {
		errs = append(errs, e.Release())
	}
	return errors.Join(append(errs, c.lock.Close())...)
}
