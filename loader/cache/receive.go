package cache

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// Chunk returns the memory to receive a chunk into: a piece of the shared mapping of its file.
// It stays valid until the chunk is committed or the entry released. The room is allocated, so a
// write to it does not fault, unless somebody else truncates the file.
func (e *Entry) Chunk(file, chunk int) ([]byte, error) {
	off := int64(chunk) * e.m.ChunkSize
	end := min(off+e.m.ChunkSize, e.m.Files[file].Size)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.begin(); err != nil {
		return nil, err
	}
	if e.files[file].mapping == nil {
		if err := e.mapFile(file); err != nil {
			return nil, err
		}
	}
	return e.files[file].mapping[off:end:end], nil
}

// begin opens the record of chunks.
func (e *Entry) begin() error {
	if e.state != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(e.dir, "chunks"), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("entry %s: %w", e.id, err)
	}
	e.state = f
	if !e.medium.memory {
		e.flusher = startWriteback(e)
	}
	return nil
}

// mapFile maps a file for writing.
func (e *Entry) mapFile(i int) error {
	mf := &e.m.Files[i]
	if e.files[i].placed {
		return errChanged(e.path(i))
	}
	root, err := os.OpenRoot(filepath.Join(e.dir, "data"))
	if err != nil {
		return fmt.Errorf("entry %s: %w", e.id, err)
	}
	defer root.Close()
	f, err := root.OpenFile(filepath.FromSlash(mf.Path), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("entry %s: %w", e.id, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return fmt.Errorf("entry %s: %w", e.id, err)
	} else if st.Size() != mf.Size {
		return fmt.Errorf("entry %s: somebody changed the size of %s: %w", e.id, mf.Path, errSize(mf, st.Size()))
	}
	if !e.files[i].allocated {
		// Of an earlier process's file only the size is known.
		if err := allocate(f, mf.Size); err != nil {
			return explain(e.dir, err)
		}
		e.files[i].allocated = true
	}
	mapping, err := unix.Mmap(int(f.Fd()), 0, int(mf.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("entry %s: mapping %s: %w", e.id, mf.Path, err)
	}
	e.files[i].mapping = mapping
	return nil
}

func errChanged(path string) error {
	return fail(fs.ErrExist, "%s was changed since it was fetched: move it away and run the command again", path)
}

func errSize(mf *manifest.File, got int64) error {
	return &manifest.MismatchError{Path: mf.Path, Size: mf.Size, Sum: "size", Want: fmt.Sprint(mf.Size), Got: fmt.Sprint(got)}
}

// recorded is what the file "chunks" says about a chunk that is committed.
var recorded = [...]byte{verified}

// Commit records that the chunk's bytes are in place and verified. Readers may see them from now on;
// a process that is killed right after it finds them again.
func (e *Entry) Commit(file, chunk int) error {
	i := e.first[file] + chunk
	if e.chunks[i].Load() == verified {
		return nil
	}
	if _, err := e.state.WriteAt(recorded[:], int64(headerSize+i)); err != nil {
		return fmt.Errorf("entry %s: recording a chunk: %w", e.id, err)
	}
	e.writeBack(file, chunk)
	e.count(file, chunk)
	if e.left[file].Add(-1) > 0 {
		return nil
	}
	e.mu.Lock()
	err := e.unmap(file)
	e.mu.Unlock()
	e.open.Add(-1)
	return err
}

func (e *Entry) count(file, chunk int) {
	e.chunks[e.first[file]+chunk].Store(verified)
	e.bytes.Add(min(e.m.ChunkSize, e.m.Files[file].Size-int64(chunk)*e.m.ChunkSize))
}

// Suspect reports whether the chunk was recorded by an earlier boot or its file was changed since:
// [Entry.Recheck] may save receiving it again.
func (e *Entry) Suspect(file, chunk int) bool {
	return e.chunks[e.first[file]+chunk].Load() == suspect
}

// Recheck reads a suspect chunk back through buf and commits it if its bytes are the manifest's.
// If they are not, or cannot be read, it reports false and the chunk counts as absent.
func (e *Entry) Recheck(file, chunk int, buf []byte) (bool, error) {
	e.mu.Lock()
	err := e.begin()
	path := e.path(file)
	e.mu.Unlock()
	if err != nil {
		return false, err
	}
	off := int64(chunk) * e.m.ChunkSize
	n := min(e.m.ChunkSize, e.m.Files[file].Size-off)
	sum, err := sumRange(path, off, n, buf)
	if err != nil || sum != e.m.Files[file].Chunks[chunk] {
		e.chunks[e.first[file]+chunk].Store(absent)
		return false, nil
	}
	return true, e.Commit(file, chunk)
}

// Intact reads a chunk back through buf, from the disk if it lies on one, and reports whether it could be
// read and its bytes are the manifest's.
func (e *Entry) Intact(file, chunk int, buf []byte) bool {
	off := int64(chunk) * e.m.ChunkSize
	sum, err := sumRange(e.Path(file), off, min(e.m.ChunkSize, e.m.Files[file].Size-off), buf)
	return err == nil && sum == e.m.Files[file].Chunks[chunk]
}

func sumRange(path string, off, n int64, buf []byte) (uint32, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// What the disk holds counts, not what the kernel remembers of a write that failed.
	if err := unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	var sum uint32
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if _, err := f.ReadAt(p, off); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, manifest.Castagnoli, p)
		off += int64(len(p))
		n -= int64(len(p))
	}
	return sum, nil
}

func (e *Entry) unmap(file int) error {
	mapping := e.files[file].mapping
	if mapping == nil {
		return nil
	}
	e.files[file].mapping = nil
	if err := unix.Munmap(mapping); err != nil {
		return fmt.Errorf("entry %s: unmapping %s: %w", e.id, e.m.Files[file].Path, err)
	}
	return nil
}

// Release gives back what receiving into the entry holds: mappings and descriptors. Chunks that are
// committed stay; receiving may go on later.
func (e *Entry) Release() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.release()
}

func (e *Entry) release() error {
	var errs []error
	for i := range e.files {
		errs = append(errs, e.unmap(i))
	}
	if e.flusher != nil {
		e.flusher.end()
		e.flusher = nil
	}
	if e.state != nil {
		errs = append(errs, e.state.Close())
		e.state = nil
	}
	return errors.Join(errs...)
}
