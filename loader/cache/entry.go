package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

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
	place  *Place // of its cache, nil if it has none
	huge   int64  // bytes that it got in huge pages
	boot   string
	held   *os.File // the lock of an entry that has no cache

	first  []int           // index of each file's first chunk in chunks
	chunks []atomic.Uint32 // absent, verified or suspect
	left   []atomic.Int64  // chunks of each file that are not verified
	open   atomic.Int64    // files that are not complete
	bytes  atomic.Int64    // verified
	sealed atomic.Bool

	mu       sync.Mutex // guards what follows, and the order of Seal, Sync and Release
	files    []file
	state    *os.File   // the file "chunks", open while chunks are recorded
	flusher  *writeback // as long, where entries lie on a disk
	head     header
	seals    int   // how often it was sealed by this process
	unsynced error // of a sync that ended when the entry was sealed no more
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

// ID returns the readable name of an entry: org--name@, 12 digits of the commit, and 32 of the
// manifest's sum, half of it: the longest model's ID and a prefix fit into a file name of 255 bytes.
// A model's name has no "--", so no two models share an ID.
func ID(m manifest.Model, sum manifest.Digest) string {
	name := []byte(m.Repo)
	for i, c := range name {
		if c == '/' {
			name = fmt.Appendf(nil, "%s--%s", name[:i], name[i+1:])
			break
		}
	}
	return fmt.Sprintf("%s@%s-%s", name, m.Commit[:12], sum.String()[:32])
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

// Durable reports whether the entry was synced: on a disk it holds across a crash of the machine.
func (e *Entry) Durable() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sealed.Load() && e.head.durable
}

// Place returns the medium of the cache that the entry lies on; nil if it is one of [OpenDir].
func (e *Entry) Place() *Place { return e.place }

// HugeBytes returns how many of the entry's bytes are in huge pages, as well as can be told: 0 if an
// earlier process made it.
func (e *Entry) HugeBytes() int64 { return e.huge }

// InMemory reports whether the entry's files are on a tmpfs: their pages are written back to no disk.
func (e *Entry) InMemory() bool { return e.medium.memory }

// Bytes returns the number of verified bytes.
func (e *Entry) Bytes() int64 { return e.bytes.Load() }

// Open opens Files[file] for reading.
func (e *Entry) Open(file int) (*os.File, error) {
	f, err := os.OpenFile(e.Path(file), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", e.id, err)
	}
	return f, nil
}
