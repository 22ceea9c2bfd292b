package stager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"
)

// Store is the writing side of a bucket. Objects appear whole or not at all, and every write says
// what it expects to find, so that repeating one after a lost answer, here or in another process, is
// harmless. It retries what is worth retrying; an error that it returns is final. All methods are
// safe for concurrent use.
//
// Errors wrap fs.ErrNotExist (no such object or bucket), fs.ErrPermission, fs.ErrExist (an object
// with other content is in the way and was left untouched), ErrRetained, syscall.ENOSPC, EROFS or EDQUOT.
type Store interface {
	// Get returns the content of a small object and the version to replace it by. More than limit
	// bytes are an error.
	Get(ctx context.Context, key string, limit int64) (data []byte, version int64, err error)
	// Put writes an object where the one at key has the given version, 0 being none. It returns nil
	// where an object with exactly this content is there afterwards, whoever wrote it. data is the
	// content in pieces, not kept after the return.
	Put(ctx context.Context, key string, version int64, data ...[]byte) error
	// Copy makes an object of one that is in the bucket already, without its bytes leaving the bucket. size
	// and sum (CRC32C) are what the bytes must be. Like Put it returns nil where an object with this size
	// and sum is there afterwards. Where the source is not there it fails with fs.ErrNotExist, where it has
	// other bytes with a *manifest.MismatchError, and makes nothing.
	Copy(ctx context.Context, from, key string, size int64, sum uint32) error
	// Open reads n bytes of an object from off, or with n < 0 all from there on. What ends before is
	// an early io.EOF: the reader counts.
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	// List iterates over the objects whose keys begin with prefix, which ends in "/".
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
	// Delete removes an object; that there is none is no error.
	Delete(ctx context.Context, key string) error
	// Upload begins, or goes on with, an object of size bytes that goes up in parts. What it keeps
	// between runs lies below dir, which ends in "/" and belongs to this object alone. It waits while
	// another process writes the same object, where the store cannot let both do it, and returns
	// fs.ErrExist where the object is there.
	Upload(ctx context.Context, key, dir string, size int64) (Upload, error)
	// String returns the bucket's URL, for messages.
	String() string
}

// Upload is an object that goes up in parts, in any order and over several runs.
type Upload interface {
	// Parts returns what earlier runs left, in the order of offsets. The store vouches for the
	// parts' bytes: they are there and have the given sums.
	Parts() []Part
	// Write stores one part, which no other overlaps, and returns when it would survive a crash of
	// this process. data is its content in pieces, not kept after the return. Safe for concurrent use.
	Write(ctx context.Context, p Part, data [][]byte) error
	// Commit makes the object visible if the given parts, which follow each other from 0 to the size,
	// still have their bytes and no object is there. Like Put it returns nil where the object is there
	// afterwards with the size and sum of these parts. The parts are gone then.
	Commit(ctx context.Context, parts []Part) error
	// Discard removes all parts.
	Discard(ctx context.Context) error
	// Close releases what the Upload holds, and keeps the parts.
	Close() error
}

// Part is a piece of an upload.
type Part struct {
	Offset, Size int64
	CRC32C       uint32
	Note         []byte // at most MaxNote bytes that the store keeps with the part
}

// MaxNote is the size in bytes of the largest note. Cloud Storage keeps at most 8 KiB of metadata.
const MaxNote = 4 << 10

// Object is an object as a listing shows it.
type Object struct {
	Key     string
	Size    int64 // bytes
	CRC32C  uint32
	Summed  bool      // CRC32C is known: a directory knows no sums
	Created time.Time // when its content was written
	Version int64     // tells it from any other object that has, had or will have the key; not the version of Get
}

// ErrRetained is wrapped where the bucket does not let go of an object, whoever asks: a retention policy, a
// hold. It is an fs.ErrExist.
var ErrRetained = fmt.Errorf("retained: %w", fs.ErrExist)

// IsKept reports whether err says that an object stays, for this account or for everybody.
func IsKept(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrRetained)
}

// Failure is an error in one line for a person, of a class that a program can test for.
type Failure struct {
	Text  string
	Class error // wrapped: fs.ErrPermission, …
}

func (f *Failure) Error() string { return f.Text }
func (f *Failure) Unwrap() error { return f.Class }

// Fail makes a Failure.
func Fail(class error, format string, args ...any) error {
	return &Failure{Text: fmt.Sprintf(format, args...), Class: class}
}
