package cache

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// Behind returns the place of copies of what lies in memory; nil where none are wanted, see [Both].
func (c *Cache) Behind() *Place { return c.behind }

// Copies returns all copies, complete or not, in the order of their IDs.
func (c *Cache) Copies() []*Entry { return c.sorted(c.copies) }

// Copy returns the copy on the disk of an entry in memory, complete or not; nil if there is none.
func (c *Cache) Copy(e *Entry) *Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[e.id] != e {
		return nil
	}
	return c.copies[e.id]
}

// IsCopy reports whether e is the copy of an entry, and not one itself.
func (c *Cache) IsCopy(e *Entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.copies[e.id] == e
}

// MakeCopy finds the copy of an entry in memory, or makes it in [Cache.Behind] with all of its room and
// nothing in it. It is an entry that nobody is shown, until the one in memory is removed. Errors are
// those of [Cache.EntryAt].
func (c *Cache) MakeCopy(e *Entry) (*Entry, error) {
	c.making.Lock()
	defer c.making.Unlock()
	if c.Find(e.id) != e || e.place == c.behind {
		return nil, fmt.Errorf("entry %s is not in memory: %w", e.id, fs.ErrNotExist)
	}
	if there := c.Copy(e); there != nil {
		return there, nil
	}
	made, err := c.make(c.behind, e.m, e.raw)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.copies[e.id] = made
	c.mu.Unlock()
	return made, nil
}

// CopyChunk takes a chunk from another entry of the same manifest through buf, and commits it if its
// bytes are the manifest's; if not, the error is a *manifest.MismatchError. The chunk's pages are on
// their disk and no longer in memory when it returns: who copies from memory has no room for them twice.
func (e *Entry) CopyChunk(from *Entry, file, chunk int, buf []byte) (err error) {
	e.mu.Lock()
	err = e.begin()
	path := e.path(file)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	src, err := from.Open(file)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return explain(e.home(), err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	mf := &e.m.Files[file]
	off := int64(chunk) * e.m.ChunkSize
	c := manifest.Chunk{File: file, Index: chunk, Offset: off, Size: min(e.m.ChunkSize, mf.Size-off), CRC32C: mf.Chunks[chunk]}
	sum := uint32(0)
	for at := off; at < off+c.Size; {
		p := buf[:min(int64(len(buf)), off+c.Size-at)]
		if _, err := src.ReadAt(p, at); err != nil {
			return fmt.Errorf("entry %s: %w", from.id, err)
		}
		sum = crc32.Update(sum, manifest.Castagnoli, p)
		if _, err := dst.WriteAt(p, at); err != nil {
			return explain(e.home(), err)
		}
		at += int64(len(p))
	}
	if err := e.m.Check(c, sum); err != nil {
		return err
	}
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(dst.Fd()), off, c.Size, wait); err != nil {
		return explain(e.home(), fmt.Errorf("writing %s: %w", mf.Path, err))
	}
	_ = unix.Fadvise(int(dst.Fd()), off, c.Size, unix.FADV_DONTNEED) // the kernel drops them later
	return e.Commit(file, chunk)
}
