// Package stagertest holds what tests of the stager share: a bucket in memory that has opinions and can
// fail at every write, and the suite that every Store passes.
package stagertest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Fault is what happens to a write.
type Fault int

// The faults. After one that kills, every later call of the same Store fails: its process is dead.
const (
	None       Fault = iota
	Lost             // not applied, answered with an error
	Late             // applied, answered with an error
	DeadBefore       // not applied, the process dies
	DeadAfter        // applied, the process dies
)

func (f Fault) String() string {
	return [...]string{"none", "lost", "late", "dead before", "dead after"}[f]
}

// ErrFault is the error of a write that a Fault has met.
var ErrFault = errors.New("a fault that the test asked for")

// Bucket is a bucket in memory. It fails the test where a caller breaks an invariant.
type Bucket struct {
	t testing.TB

	mu      sync.Mutex
	objects map[string]object
	version int64
}

type object struct {
	data    []byte
	version int64
	created time.Time
	// Of a part:
	note   []byte
	of     string // key of the upload
	offset int64
}

// NewBucket returns an empty bucket.
func NewBucket(t testing.TB) *Bucket { return &Bucket{t: t, objects: make(map[string]object)} }

// Store returns what one process sees of the bucket. Its writes are counted from 0, and fault (nil: none)
// decides what happens to each.
func (b *Bucket) Store(fault func(n int, write string) Fault) *Store {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &Store{bucket: b, fault: fault}
}

// Contents returns every object.
func (b *Bucket) Contents() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]string, len(b.objects))
	for key, o := range b.objects {
		all[key] = string(o.data)
	}
	return all
}

// Store is a process's view of a Bucket.
type Store struct {
	Before func(write string) // optional; what somebody else does before a write, one at a time
	before sync.Mutex

	bucket *Bucket
	fault  func(n int, write string) Fault
	writes []string
	dead   bool
}

var errDead = fmt.Errorf("the process is dead after %w", ErrFault)

// Writes returns the writes so far, in their order: "put KEY", "part KEY OFFSET", "commit KEY", ….
func (s *Store) Writes() []string {
	s.bucket.mu.Lock()
	defer s.bucket.mu.Unlock()
	return slices.Clone(s.writes)
}

func (s *Store) String() string { return "mem://bucket" }

// read runs f while the process lives.
func (s *Store) read(ctx context.Context, f func() error) error {
	s.bucket.mu.Lock()
	defer s.bucket.mu.Unlock()
	if s.dead {
		return errDead
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return f()
}

// write applies f as the fault for this write says.
func (s *Store) write(ctx context.Context, what string, f func() error) error {
	if s.Before != nil {
		s.before.Lock()
		s.Before(what)
		s.before.Unlock()
	}
	return s.read(ctx, func() error {
		n := len(s.writes)
		s.writes = append(s.writes, what)
		fault := None
		if s.fault != nil {
			fault = s.fault(n, what)
		}
		s.dead = fault == DeadBefore || fault == DeadAfter
		if fault == Lost || fault == DeadBefore {
			return fmt.Errorf("%s: %w", what, ErrFault)
		}
		if err := f(); err != nil {
			return err
		}
		if fault != None {
			return fmt.Errorf("%s: %w", what, ErrFault)
		}
		return nil
	})
}

// Get returns an object's content.
func (s *Store) Get(ctx context.Context, key string, limit int64) (data []byte, version int64, err error) {
	err = s.read(ctx, func() error {
		o, ok := s.bucket.objects[key]
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", key, fs.ErrNotExist)
		case int64(len(o.data)) > limit:
			return fmt.Errorf("%s has more than %d bytes", key, limit)
		}
		data, version = bytes.Clone(o.data), o.version
		return nil
	})
	return data, version, err
}

// Put writes an object.
func (s *Store) Put(ctx context.Context, key string, version int64, data ...[]byte) error {
	return s.write(ctx, "put "+key, func() error {
		return s.bucket.put(key, version, object{data: bytes.Join(data, nil)})
	})
}

func (b *Bucket) put(key string, version int64, o object) error {
	there, ok := b.objects[key]
	if ok && bytes.Equal(there.data, o.data) {
		return nil
	}
	if there.version != version {
		return fmt.Errorf("%s: %w", key, fs.ErrExist)
	}
	if ok && !strings.HasPrefix(key, manifest.Private) {
		b.t.Errorf("the object %s is replaced", key)
	}
	b.version++
	o.version, o.created = b.version, time.Now()
	b.objects[key] = o
	return nil
}

// Copy copies an object.
func (s *Store) Copy(ctx context.Context, from, key string, size int64, sum uint32) error {
	return s.write(ctx, "copy "+key, func() error {
		o, ok := s.bucket.objects[from]
		if !ok {
			return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
		}
		if int64(len(o.data)) != size {
			return &manifest.MismatchError{Path: from, Size: size, Sum: "size", Want: fmt.Sprint(size), Got: fmt.Sprint(len(o.data))}
		}
		if got := crc32.Checksum(o.data, manifest.Castagnoli); got != sum {
			return &manifest.MismatchError{Path: from, Size: size, Sum: "crc32c", Want: fmt.Sprintf("%08x", sum), Got: fmt.Sprintf("%08x", got)}
		}
		return s.bucket.put(key, 0, object{data: o.data})
	})
}

// Open reads a range of an object.
func (s *Store) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	data, _, err := s.Get(ctx, key, 1<<40)
	if n < 0 {
		n = int64(len(data)) - off
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), off, n)), err
}

// List iterates over objects.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[stager.Object, error] {
	return func(yield func(stager.Object, error) bool) {
		if !strings.HasSuffix(prefix, "/") {
			s.bucket.t.Errorf("the prefix %q does not end in a slash", prefix)
		}
		var found []stager.Object
		err := s.read(ctx, func() error {
			for key, o := range s.bucket.objects {
				if strings.HasPrefix(key, prefix) {
					found = append(found, stager.Object{Key: key, Size: int64(len(o.data)), CRC32C: crc32.Checksum(o.data, manifest.Castagnoli), Summed: true,
						Created: o.created, Version: o.version})
				}
			}
			return nil
		})
		slices.SortFunc(found, func(a, b stager.Object) int { return strings.Compare(a.Key, b.Key) })
		for _, o := range found {
			if !yield(o, nil) {
				return
			}
		}
		if err != nil {
			yield(stager.Object{}, err)
		}
	}
}

// Delete removes an object.
func (s *Store) Delete(ctx context.Context, key string) error {
	return s.write(ctx, "delete "+key, func() error {
		if !strings.HasPrefix(key, manifest.Private+"parts/") {
			s.bucket.t.Errorf("%s is deleted", key)
		}
		delete(s.bucket.objects, key)
		return nil
	})
}

// Remove removes an object if it is the one that was listed.
func (s *Store) Remove(ctx context.Context, listed stager.Object) error {
	return s.write(ctx, "remove "+listed.Key, func() error {
		o, ok := s.bucket.objects[listed.Key]
		if ok && o.version != listed.Version {
			return fmt.Errorf("%s: another object: %w", listed.Key, fs.ErrExist)
		}
		delete(s.bucket.objects, listed.Key)
		return nil
	})
}

// Upload begins or continues an upload.
func (s *Store) Upload(ctx context.Context, key, dir string, size int64) (stager.Upload, error) {
	u := &upload{store: s, key: key, dir: dir, size: size}
	return u, u.list(ctx)
}

// Peek returns the parts of an upload.
func (s *Store) Peek(ctx context.Context, key, dir string) ([]stager.Part, error) {
	u := &upload{store: s, key: key, dir: dir}
	err := u.list(ctx)
	return u.parts, err
}

func (u *upload) list(ctx context.Context) error {
	s, dir := u.store, u.dir
	err := s.read(ctx, func() error {
		for k, o := range s.bucket.objects {
			var p stager.Part
			if rest, ok := strings.CutPrefix(k, dir); ok {
				if n, _ := fmt.Sscanf(rest, "part-%d-%d", &p.Offset, &p.Size); n == 2 {
					p.CRC32C, p.Note = crc32.Checksum(o.data, manifest.Castagnoli), o.note
					u.parts = append(u.parts, p)
				}
			}
		}
		return nil
	})
	slices.SortFunc(u.parts, func(a, b stager.Part) int { return cmp.Compare(a.Offset, b.Offset) })
	return err
}

type upload struct {
	store  *Store
	key    string
	dir    string
	size   int64
	parts  []stager.Part
	closed bool
}

func (u *upload) name(p stager.Part) string {
	return fmt.Sprintf("%spart-%d-%d", u.dir, p.Offset, p.Size)
}

func (u *upload) Parts() []stager.Part { return u.parts }

func (u *upload) Write(ctx context.Context, p stager.Part, data [][]byte) error {
	b := u.store.bucket
	return u.store.write(ctx, fmt.Sprintf("part %s %d", u.key, p.Offset), func() error {
		all := bytes.Join(data, nil)
		switch {
		case u.closed:
			b.t.Errorf("%s: a write after Close", u.key)
		case int64(len(all)) != p.Size || crc32.Checksum(all, manifest.Castagnoli) != p.CRC32C:
			b.t.Errorf("%s: the part at %d has not the bytes it says", u.key, p.Offset)
		case len(p.Note) > stager.MaxNote:
			b.t.Errorf("%s: a note of %d bytes", u.key, len(p.Note))
		case p.Offset < 0 || p.Offset+p.Size > u.size:
			b.t.Errorf("%s: the part at %d is outside", u.key, p.Offset)
		}
		b.version++
		b.objects[u.name(p)] = object{data: all, version: b.version, created: time.Now(), note: bytes.Clone(p.Note), of: u.key, offset: p.Offset}
		return nil
	})
}

func (u *upload) Commit(ctx context.Context, parts []stager.Part) error {
	b := u.store.bucket
	return u.store.write(ctx, "commit "+u.key, func() error {
		var data []byte
		var sum uint32
		for _, p := range parts {
			if p.Offset != int64(len(data)) {
				return fmt.Errorf("%s: a gap at %d", u.key, len(data))
			}
			sum = manifest.CombineCRC32C(sum, p.CRC32C, p.Size)
			o, ok := b.objects[u.name(p)]
			if !ok || crc32.Checksum(o.data, manifest.Castagnoli) != p.CRC32C {
				if there, ok := b.objects[u.key]; ok && int64(len(there.data)) == u.size && crc32.Checksum(there.data, manifest.Castagnoli) == combined(parts) {
					return nil
				}
				return fmt.Errorf("%s: the part at %d is gone", u.key, p.Offset)
			}
			data = append(data, o.data...)
		}
		if int64(len(data)) != u.size || crc32.Checksum(data, manifest.Castagnoli) != sum {
			return fmt.Errorf("%s: the parts do not make up the object", u.key)
		}
		if err := b.put(u.key, 0, object{data: data}); err != nil {
			return err
		}
		for _, p := range parts {
			delete(b.objects, u.name(p))
		}
		return nil
	})
}

func combined(parts []stager.Part) uint32 {
	var sum uint32
	for _, p := range parts {
		sum = manifest.CombineCRC32C(sum, p.CRC32C, p.Size)
	}
	return sum
}

func (u *upload) Discard(ctx context.Context) error {
	return u.store.write(ctx, "discard "+u.key, func() error {
		for k := range u.store.bucket.objects {
			if strings.HasPrefix(k, u.dir) {
				delete(u.store.bucket.objects, k)
			}
		}
		return nil
	})
}

func (u *upload) Close() error {
	u.store.bucket.mu.Lock()
	defer u.store.bucket.mu.Unlock()
	u.closed = true
	return nil
}

// RemovePart removes the part at off of the file whose path ends in path, and returns its size in bytes.
func (b *Bucket) RemovePart(path string, off int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, o := range b.objects {
		if strings.HasSuffix(o.of, "/"+path) && o.offset == off {
			delete(b.objects, key)
			return int64(len(o.data))
		}
	}
	return 0
}

// Remove takes an object away, as somebody else may: a stager must not.
func (b *Bucket) Remove(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, key)
}

// Replace changes an object behind everybody's back.
func (b *Bucket) Replace(key string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.version++
	b.objects[key] = object{data: bytes.Clone(data), version: b.version, created: time.Now()}
}

// SetAge makes the object at key that old.
func (b *Bucket) SetAge(key string, age time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.objects[key]
	if !ok {
		b.t.Errorf("%s is not there", key)
		return
	}
	o.created = time.Now().Add(-age)
	b.objects[key] = o
}
