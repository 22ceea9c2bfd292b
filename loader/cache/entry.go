package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// Entry is one model on a medium, complete or not.
//
// Its methods may be called from many goroutines at once, with two rules that the loading engine
// keeps: a chunk has one writer, and Release and Seal are called when no writer is left.
type Entry struct {
	id     string
	dir    string // manifest.json, chunks, data
	dest   string // where the files go when the entry is sealed, "" if they stay in data
	m      *manifest.Manifest
	raw    []byte
	sum    manifest.Digest
	medium medium
	boot   string
	held   *os.File // the lock of an entry that has no cache

	first  []int           // index of each file's first chunk in chunks
	chunks []atomic.Uint32 // absent, verified or suspect
	left   []atomic.Int64  // chunks of each file that are not verified
	open   atomic.Int64    // files that are not complete
	bytes  atomic.Int64    // verified
	sealed atomic.Bool

	mu    sync.Mutex // guards what follows, and the order of Seal, Sync and Release
	files []file
	state *os.File // the file "chunks", open while chunks are recorded
	head  header
}

// file is what an entry knows about one file of the model.
type file struct {
	mapping   []byte // all of it, shared and writable, while chunks are received
	allocated bool   // by this process: no hole can be in it
	placed    bool   // it stands in dest
}

func newEntry(dir, dest string, m *manifest.Manifest, raw []byte, md medium) *Entry {
	sum := manifest.Sum(raw)
	e := &Entry{
		id: ID(m.Model, sum), dir: dir, dest: dest, m: m, raw: raw, sum: sum, medium: md, boot: bootID(),
		first: make([]int, len(m.Files)), left: make([]atomic.Int64, len(m.Files)), files: make([]file, len(m.Files)),
	}
	n, open := 0, 0
	for i := range m.Files {
		e.first[i] = n
		n += len(m.Files[i].Chunks)
		e.left[i].Store(int64(len(m.Files[i].Chunks)))
		if len(m.Files[i].Chunks) > 0 {
			open++
		}
	}
	e.chunks = make([]atomic.Uint32, n)
	e.open.Store(int64(open))
	e.head = header{boot: e.boot, sum: sum}
	return e
}

// ID returns the readable name of an entry: org--name@, 12 digits of the commit, and 12 of the
// manifest's sum. A model's name has no "--", so no two models share an ID.
func ID(m manifest.Model, sum manifest.Digest) string {
	name := []byte(m.Repo)
	for i, c := range name {
		if c == '/' {
			name = fmt.Appendf(nil, "%s--%s", name[:i], name[i+1:])
			break
		}
	}
	return fmt.Sprintf("%s@%s-%s", name, m.Commit[:12], sum.String()[:12])
}

// ID returns the entry's name in its cache.
func (e *Entry) ID() string { return e.id }

// Manifest returns the manifest, which must not be changed.
func (e *Entry) Manifest() *manifest.Manifest { return e.m }

// Raw returns the manifest's bytes, which must not be changed.
func (e *Entry) Raw() []byte { return e.raw }

// Sum returns the sum that pins the manifest.
func (e *Entry) Sum() manifest.Digest { return e.sum }

// Dir returns the directory of the model's files: the whole tree from the first moment, with their
// true sizes, but for an entry of OpenDir, whose files come there when it is sealed.
func (e *Entry) Dir() string {
	if e.dest != "" {
		return e.dest
	}
	return filepath.Join(e.dir, "data")
}

// Path returns where the bytes of Files[file] are now.
func (e *Entry) Path(file int) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.path(file)
}

func (e *Entry) path(file int) string {
	base := filepath.Join(e.dir, "data")
	if e.files[file].placed {
		base = e.dest
	}
	return filepath.Join(base, filepath.FromSlash(e.m.Files[file].Path))
}

// Have reports whether the chunk is verified.
func (e *Entry) Have(file, chunk int) bool {
	return e.chunks[e.first[file]+chunk].Load() == verified
}

// FileComplete reports whether every chunk of the file is verified.
func (e *Entry) FileComplete(file int) bool { return e.left[file].Load() == 0 }

// Filled reports whether every chunk of every file is verified: the entry can be sealed.
func (e *Entry) Filled() bool { return e.open.Load() == 0 }

// Complete reports whether the entry is sealed: nothing will write to it again.
func (e *Entry) Complete() bool { return e.sealed.Load() }

// Bytes returns the number of verified bytes.
func (e *Entry) Bytes() int64 { return e.bytes.Load() }

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

// Commit records that the chunk's bytes are in place and verified. Readers may see them from now on;
// a process that is killed right after it finds them again.
func (e *Entry) Commit(file, chunk int) error {
	i := e.first[file] + chunk
	if e.chunks[i].Load() == verified {
		return nil
	}
	if _, err := e.state.WriteAt([]byte{verified}, int64(headerSize+i)); err != nil {
		return fmt.Errorf("entry %s: recording a chunk: %w", e.id, err)
	}
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

func sumRange(path string, off, n int64, buf []byte) (uint32, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
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
	if e.state != nil {
		errs = append(errs, e.state.Close())
		e.state = nil
	}
	return errors.Join(errs...)
}

// Seal makes a filled entry complete: its files are read-only and carry one time of change, by which
// a later change is noticed. It does not wait for the disk (see [Entry.Sync]), but for an entry of
// [OpenDir]: that is synced first, and its files take their places last.
func (e *Entry) Seal() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sealed.Load() {
		return nil
	}
	if !e.Filled() {
		panic("cache: Seal of an entry that is not filled")
	}
	if err := e.begin(); err != nil {
		return err
	}
	e.head.stamp = time.Unix(time.Now().Unix(), 0)
	if err := e.finish(); err != nil {
		return fmt.Errorf("sealing entry %s: %w", e.id, err)
	}
	e.sealed.Store(true)
	return e.release()
}

func (e *Entry) finish() error {
	for i := range e.files {
		if err := os.Chmod(e.path(i), 0o444); err != nil {
			return err
		}
		if err := os.Chtimes(e.path(i), e.head.stamp, e.head.stamp); err != nil {
			return err
		}
	}
	if e.dest == "" {
		if err := e.chmodDirs(0o555); err != nil {
			return err
		}
		return e.writeHeader()
	}
	if err := e.syncPaths(context.Background(), e.paths()); err != nil {
		return err
	}
	if err := e.place(); err != nil {
		return err
	}
	if err := e.syncPaths(context.Background(), e.paths()[len(e.files):]); err != nil {
		return err
	}
	e.head.durable = true
	if err := e.writeHeader(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(e.dir, "data"))
}

func (e *Entry) writeHeader() error {
	if _, err := e.state.WriteAt(e.head.marshal(), 0); err != nil {
		return err
	}
	if e.head.durable && !e.medium.memory {
		return e.state.Sync()
	}
	return nil
}

func (e *Entry) chmodDirs(mode os.FileMode) error {
	return filepath.WalkDir(filepath.Join(e.dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(path, mode)
	})
}

// Sync waits until a sealed entry is on its disk, so that it holds across a crash of the machine
// without being read again. It stops between two files when ctx ends.
func (e *Entry) Sync(ctx context.Context) error {
	e.mu.Lock()
	if !e.sealed.Load() || e.head.durable {
		e.mu.Unlock()
		return nil
	}
	paths := e.paths()
	e.mu.Unlock()
	if err := e.syncPaths(ctx, paths); err != nil {
		return fmt.Errorf("syncing entry %s: %w", e.id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.begin(); err != nil {
		return err
	}
	e.head.durable = true
	if err := e.writeHeader(); err != nil {
		return fmt.Errorf("syncing entry %s: %w", e.id, err)
	}
	return e.release()
}

// paths returns the files and the directories that their names stand in, each before its parent.
func (e *Entry) paths() []string {
	var files, dirs []string
	done := make(map[string]bool)
	for i := range e.files {
		files = append(files, e.path(i))
		for dir := filepath.Dir(e.path(i)); !done[dir]; dir = filepath.Dir(dir) {
			done[dir] = true
			dirs = append(dirs, dir)
			if dir == e.dest || dir == e.dir {
				break
			}
		}
	}
	return append(files, dirs...)
}

func (e *Entry) syncPaths(ctx context.Context, paths []string) error {
	if e.medium.memory {
		return nil
	}
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := syncPath(path); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open opens Files[file] for reading.
func (e *Entry) Open(file int) (*os.File, error) {
	f, err := os.OpenFile(e.Path(file), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", e.id, err)
	}
	return f, nil
}
