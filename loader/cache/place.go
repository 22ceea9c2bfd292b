package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/memory"
	"github.com/headstart-serving/headstart/loader/tmpfs"
)

// Kind is what a medium is made of.
type Kind string

// The kinds of media. Auto means memory for the models that fit, and the disk for the rest; Both means
// that, and room for a copy on the disk of each that is in memory, see [Cache.MakeCopy].
const (
	Memory Kind = "memory"
	Disk   Kind = "disk"
	Auto   Kind = "auto"
	Both   Kind = "both"
)

// Media says what a cache's new entries lie on.
type Media struct {
	Use    Kind  // default: the directory itself, whatever it is on
	Memory int64 // bytes of memory at most; default half of what there is
	// Account says how much memory there is; default [memory.Read].
	Account func() (memory.Account, error)
}

// Place is one medium of a cache.
type Place struct {
	dir    string // entries and aside are below it
	medium medium
	mount  *tmpfs.Mount // of a place in memory that is the cache's own, else nil
	huge   string       // of a place in memory, see tmpfs.HugePages
}

// Dir returns the directory of the place.
func (p *Place) Dir() string { return p.dir }

// Kind returns Memory or Disk.
func (p *Place) Kind() Kind {
	if p.medium.memory {
		return Memory
	}
	return Disk
}

// HugePages says whether a place in memory has huge pages: "yes", or "no: " or "unknown: " and why.
func (p *Place) HugePages() string { return p.huge }

// Room is how much a place takes. Numbers are bytes.
type Room struct {
	Size      uint64
	Available uint64
	Block     uint64 // files take whole blocks
	Bound     string // what sets Available where that is less than the file system has, else ""
}

// Room returns how much the place takes now.
func (p *Place) Room() (Room, error) { return p.medium.room(p.dir) }

// inMemory opens the place in memory that belongs to a cache: it finds the one that an earlier process
// left, and makes one if wanted.
func (c *Cache) inMemory(media Media, wanted bool) (*Place, error) {
	dir := filepath.Join(c.dir, "memory")
	m, err := tmpfs.Find(dir)
	if err != nil {
		return nil, err
	}
	if m == nil && !wanted {
		return nil, nil
	}
	size, err := media.size()
	if err != nil {
		return nil, err
	}
	switch {
	case m == nil:
		if m, err = tmpfs.Make(dir, size); err != nil {
			return nil, err
		}
		c.log.Info("mounted memory for models", "path", dir, "bytes", m.Size, "option", "huge="+m.Huge)
	case m.Ours && wanted && m.Size != size:
		if err := m.Resize(size); err != nil {
			c.log.Warn("the memory for models keeps its size", "err", err)
		}
	}
	md, err := probe(dir)
	if err != nil {
		return nil, err
	}
	md.account = media.Account
	return newPlace(dir, md, m), nil
}

// newPlace looks what pages a place in memory has.
func newPlace(dir string, md medium, m *tmpfs.Mount) *Place {
	p := &Place{dir: dir, medium: md, mount: m}
	if md.memory {
		p.huge = tmpfs.HugePages(dir)
	}
	return p
}

// size returns the bytes that a tmpfs is to have.
func (m *Media) size() (int64, error) {
	a, err := m.Account()
	if err != nil {
		return 0, err
	}
	page := int64(os.Getpagesize())
	switch {
	case m.Memory == 0:
		return a.Total / 2 / page * page, nil
	case m.Memory > a.Total:
		return 0, fail(unix.ENOSPC, "%d bytes of memory for models are more than there are, %d (%s): take a lower limit", m.Memory, a.Total, a.Bound)
	}
	return max(m.Memory/page, 1) * page, nil // 0 would be no limit
}

// openPlaces finds what entries lie on: the directory, and its place in memory.
func (c *Cache) openPlaces(md medium, media Media) error {
	if media.Account == nil {
		media.Account = memory.Read
	}
	md.account = media.Account
	home := newPlace(c.dir, md, nil)
	c.places, c.order = []*Place{home}, []*Place{home}
	if md.memory {
		return c.allMemory(media)
	}
	there, err := c.inMemory(media, media.Use == Memory || media.Use == Auto || media.Use == Both)
	switch {
	case err != nil && media.Use == Auto && errors.Is(err, fs.ErrPermission):
		c.log.Warn("models go to the disk: this process may not mount memory", "err", err)
		return nil
	case err != nil:
		return err
	case there == nil:
		return nil
	}
	c.places = append(c.places, there)
	switch media.Use {
	case Memory:
		c.order = []*Place{there}
	case Auto:
		c.order = []*Place{there, home}
	case Both:
		c.order, c.behind = []*Place{there, home}, home
	}
	return nil
}

// allMemory is for a directory that is on a tmpfs itself.
func (c *Cache) allMemory(media Media) error {
	switch {
	case media.Use == Disk, media.Use == Both:
		return fail(unix.EOPNOTSUPP, "%s is on a tmpfs, which is memory: use a directory on a disk, or another medium than %s", c.dir, media.Use)
	case media.Memory > 0:
		return fail(unix.EOPNOTSUPP, "%s is on a tmpfs, which has a size of its own: leave the limit of memory out, or use a directory on a disk", c.dir)
	}
	return nil
}

// closePlaces gives memory back that nothing is in any more.
func (c *Cache) closePlaces() error {
	for _, p := range c.places {
		if p.mount == nil || !p.mount.Ours || p.inUse() {
			continue
		}
		if err := p.mount.Remove(); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// inUse reports whether anything is in the place, also what was set aside.
func (p *Place) inUse() bool {
	for _, sub := range []string{"entries", "aside"} {
		names, err := os.ReadDir(filepath.Join(p.dir, sub))
		if len(names) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// Places returns what new entries lie on, the preferred one first.
func (c *Cache) Places() []*Place { return c.order }

// AllPlaces returns what entries lie on, those included that take no new ones.
func (c *Cache) AllPlaces() []*Place { return c.places }

// ParseKind returns the kind of that name.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case Memory, Disk, Auto, Both:
		return k, nil
	}
	return "", fmt.Errorf("%q is no medium: it is %s, %s, %s or %s", s, Memory, Disk, Both, Auto)
}
