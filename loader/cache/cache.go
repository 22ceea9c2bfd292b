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
//	memory/                  a tmpfs with entries and aside of its own, where models go to memory
//
// A model in memory may have a copy on the disk, an entry of the same name there: it is what is left when
// the one in memory goes, with the machine's end or for want of room.
//
// A tmpfs that the cache mounted stays when the process ends, with the entries in it, until a process
// that opened the cache ends and nothing is in it any more; a reboot empties it.
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
	"syscall"

	"github.com/headstart-serving/headstart/manifest"
)

const version = "headstart cache 1\n"

// Cache is a directory of entries. It is safe for concurrent use.
type Cache struct {
	dir    string
	log    *slog.Logger
	lock   *os.File
	places []*Place // that entries lie on
	order  []*Place // that new ones go to, the preferred one first
	behind *Place   // that has copies of what lies in memory; nil where none are wanted

	making  sync.Mutex // held while an entry is made or removed
	mu      sync.Mutex // guards what follows
	entries map[string]*Entry
	copies  map[string]*Entry // on the disk, of entries in memory
}

// Open takes a directory, which it makes if there is none, and recovers the entries in it. Dir is the
// path of it without symbolic links.
//
// The error wraps EBUSY if another process has the directory, EROFS, ENOSPC or EDQUOT if it cannot
// be written to, EOPNOTSUPP if it lies on an unfit file system. What is in entries and cannot be
// served is moved aside and logged, never deleted.
func Open(dir string, log *slog.Logger) (*Cache, error) { return OpenMedia(dir, Media{}, log) }

// OpenMedia is Open for a cache whose new entries lie on the given media.
//
// Where memory is wanted it mounts a tmpfs below dir, if dir is not on one itself. The error wraps
// fs.ErrPermission if this process may not, which with Auto is no error: then all entries go to the disk.
func OpenMedia(dir string, media Media, log *slog.Logger) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cache directory %s: %w", dir, err)
	}
	c := &Cache{dir: dir, log: log, entries: make(map[string]*Entry), copies: make(map[string]*Entry)}
	if err := c.open(media); err != nil {
		if c.lock != nil {
			c.lock.Close()
		}
		return nil, fmt.Errorf("cache directory %w", err)
	}
	return c, nil
}

func (c *Cache) open(media Media) error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return explain(c.dir, err)
	}
	real, err := filepath.EvalSymlinks(c.dir) // the kernel's table of mounts has no others
	if err != nil {
		return explain(c.dir, err)
	}
	c.dir = real
	home, err := probe(c.dir)
	if err != nil {
		return err
	}
	if c.lock, err = lock(filepath.Join(c.dir, "lock")); err != nil {
		return err
	}
	if err := c.checkVersion(); err != nil {
		return err
	}
	if err := c.openPlaces(home, media); err != nil {
		return err
	}
	for _, p := range c.places {
		if err := os.MkdirAll(filepath.Join(p.dir, "entries"), 0o755); err != nil {
			return explain(p.dir, err)
		}
		if err := c.recover(p); err != nil {
			return err
		}
	}
	return nil
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

// recover reads the entries that an earlier process left in a place.
func (c *Cache) recover(p *Place) error {
	entries := filepath.Join(p.dir, "entries")
	dirs, err := os.ReadDir(entries)
	if err != nil {
		return explain(p.dir, err)
	}
	for _, d := range dirs {
		dir := filepath.Join(entries, d.Name())
		if strings.HasPrefix(d.Name(), ".") {
			// An entry that was being made, and has no byte yet, or being removed.
			c.log.Info("removing what is left of an unfinished entry", "path", dir)
			if err := removeTree(entries, d.Name()); err != nil {
				return err
			}
			continue
		}
		e, err := load(dir, "", p.medium)
		if err == nil && e.id != d.Name() {
			err = fmt.Errorf("the manifest in it is of %s", e.id)
		}
		if other := c.entries[d.Name()]; err == nil && other != nil && other.sum != e.sum {
			err = fmt.Errorf("an entry of another manifest has the same name in %s", other.place.dir)
		}
		if err == nil {
			err = e.resume()
		}
		if err != nil {
			if err := c.setAside(p, d.Name(), err); err != nil {
				return err
			}
			continue
		}
		e.place = p
		if found := c.entries[e.id]; found != nil { // places in memory come last
			c.copies[e.id] = found
		}
		c.entries[e.id] = e
		c.log.Info("found an entry", "entry", e.id, "medium", p.Kind(), "complete", e.Complete(), "verified_bytes", e.Bytes(), "size_bytes", e.m.Size())
	}
	return nil
}

// setAside moves what cannot be served out of the way. It is not deleted: it may be worth a look.
func (c *Cache) setAside(p *Place, name string, why error) error {
	aside := filepath.Join(p.dir, "aside")
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return explain(p.dir, err)
	}
	for n := 1; ; n++ {
		to := filepath.Join(aside, fmt.Sprintf("%s.%d", name, n))
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(filepath.Join(p.dir, "entries", name), to); err != nil {
			return explain(p.dir, err)
		}
		c.log.Warn("set aside an entry that cannot be served; remove it to have its room back", "entry", name, "path", to, "reason", why)
		return nil
	}
}

// Entry finds the entry of a manifest, or makes it with all of its room where that is: in the first of
// Places that has it. raw is the manifest's bytes.
//
// Without enough room the error wraps ENOSPC and says how much is needed and how much there is;
// nothing is left of the attempt.
func (c *Cache) Entry(m *manifest.Manifest, raw []byte) (e *Entry, err error) {
	for _, p := range c.order {
		if e, err = c.EntryAt(p, m, raw); !errors.Is(err, syscall.ENOSPC) {
			return e, err
		}
	}
	return nil, err
}

// EntryAt is Entry, and makes the entry in that place and in no other. One that is found may be elsewhere.
func (c *Cache) EntryAt(p *Place, m *manifest.Manifest, raw []byte) (*Entry, error) {
	c.making.Lock()
	defer c.making.Unlock()
	id := ID(m.Model, manifest.Sum(raw))
	if e := c.Find(id); e != nil {
		if sum := manifest.Sum(raw); e.sum != sum {
			// Half a sum can be made to collide; the whole one is what a pin pins.
			return nil, fail(fs.ErrExist, "entry %s in %s is of another manifest, %s, not %s: remove it first", id, c.dir, e.sum, sum)
		}
		return e, nil
	}
	e, err := c.make(p, m, raw)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.entries[id] = e
	c.mu.Unlock()
	return e, nil
}

// make makes an entry in a place. The caller holds c.making.
func (c *Cache) make(p *Place, m *manifest.Manifest, raw []byte) (*Entry, error) {
	id := ID(m.Model, manifest.Sum(raw))
	entries := filepath.Join(p.dir, "entries")
	final, dir := filepath.Join(entries, id), filepath.Join(entries, ".new-"+id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, explain(p.dir, err)
	}
	e := newEntry(dir, "", m, raw, p.medium)
	e.place = p
	if err := e.create(); err != nil {
		return nil, errors.Join(err, removeTree(entries, ".new-"+id))
	}
	if err := os.Rename(dir, final); err != nil {
		return nil, errors.Join(explain(p.dir, err), removeTree(entries, ".new-"+id))
	}
	e.dir = final
	return e, nil
}

// Find returns the entry of that ID, nil if there is none.
func (c *Cache) Find(id string) *Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[id]
}

// Entries returns all entries in the order of their IDs, without [Cache.Copies].
func (c *Cache) Entries() []*Entry { return c.sorted(c.entries) }

func (c *Cache) sorted(entries map[string]*Entry) []*Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Entry, 0, len(entries))
	for _, e := range entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *Entry) int { return cmp.Compare(a.id, b.id) })
	return all
}

// Remove deletes an entry, or a copy, and its files. Nobody may be loading it or reading it; who has a
// file open keeps that file. A copy takes the place of the entry that it was made of, complete or not.
func (c *Cache) Remove(e *Entry) error {
	c.making.Lock()
	defer c.making.Unlock()
	if c.Find(e.id) != e && !c.IsCopy(e) {
		return fmt.Errorf("entry %s is not in the cache: %w", e.id, fs.ErrNotExist)
	}
	if err := e.Release(); err != nil {
		return err
	}
	// The name goes first: a process that dies now leaves nothing that looks like an entry.
	entries := filepath.Join(e.place.dir, "entries")
	if err := os.Rename(e.dir, filepath.Join(entries, ".removed-"+e.id)); err != nil {
		return explain(e.place.dir, err)
	}
	c.mu.Lock()
	if c.entries[e.id] == e {
		delete(c.entries, e.id)
		if left := c.copies[e.id]; left != nil {
			c.entries[e.id] = left
		}
	}
	delete(c.copies, e.id)
	c.mu.Unlock()
	return removeTree(entries, ".removed-"+e.id)
}

// Dir returns the cache's directory.
func (c *Cache) Dir() string { return c.dir }

// Close releases the entries' descriptors and mappings, gives back memory that nothing is in, and lets
// the next process have the directory.
// No load may be running.
func (c *Cache) Close() error {
	var errs []error
	for _, e := range append(c.Entries(), c.Copies()...) {
		errs = append(errs, e.Release())
	}
	return errors.Join(append(errs, c.closePlaces(), c.lock.Close())...)
}
