// Package fetch brings the chunks of models from a source into entries of the cache.
//
// One engine serves a node. It has one queue for all loads and a fixed number of streams that take
// from it: first the chunks that a reader is waiting for, then the small files and the head of every
// other file (a server reads the header of every shard long before a tensor), then the rest in
// natural order. A chunk is received straight into the mapping of its file, its CRC32C is computed
// piece by piece while each piece is still in the processor's cache, and nobody sees the chunk before
// that sum is the manifest's. Bytes in flight are bounded by streams times the size of a chunk.
//
// What can fail and come right is tried again here and nowhere below: on another connection, after
// a growing pause, counted by cause. Wrong bytes are tried a bounded number of times; a network that
// is down, for as long as there is hope (Config.Patience), and the load says what it is waiting for.
// What a source marks as final (fs.ErrNotExist, fs.ErrPermission, most 4xx) ends the load at once.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
)

// Source is where chunks come from: a bucket, read only. It must be safe for concurrent use and does
// not retry: the engine does. Keys are relative to the bucket's prefix.
//
// Errors wrap fs.ErrNotExist if there is no such object or bucket, fs.ErrPermission if this process
// may not read it; a *StatusError tells other refusals apart.
type Source interface {
	// Open begins to read n bytes of an object from off. The reader delivers them as they arrive,
	// straight into the slice it is given; it ends with io.EOF, at once if off is behind the object's
	// end, and with any other error if the connection breaks. It may deliver more than n bytes. It
	// and Open end when ctx does. Close before the end gives the connection up.
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)

	// Get returns a whole small object. One that is longer than limit is an error.
	Get(ctx context.Context, key string, limit int64) ([]byte, error)

	// List iterates over the objects whose keys begin with prefix, in the order of their keys.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
}

// ErrNoBucket is wrapped, beside fs.ErrNotExist, where the whole bucket is missing.
var ErrNoBucket = errors.New("no such bucket")

// Refresher is implemented by sources that keep connections. The engine calls Refresh after wrong
// bytes came through one of them: what follows should use new ones.
type Refresher interface{ Refresh() }

// Object is one object of a bucket.
type Object struct {
	Key  string // relative to the bucket's prefix
	Size int64  // bytes
}

// StatusError is an answer of a server that is not the object.
type StatusError struct {
	Code    int    // of HTTP, or the one that stands for a gRPC code
	GRPC    string // the name of the gRPC code; "" where it was HTTP
	Message string
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("HTTP %d %s", e.Code, http.StatusText(e.Code))
	if e.GRPC != "" {
		text = "gRPC " + e.GRPC
	}
	if e.Message == "" {
		return text
	}
	return text + ": " + e.Message
}

// temporary reports whether the same request may succeed later.
func (e *StatusError) temporary() bool {
	return e.Code >= 500 || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout
}

// Fail returns an error with a text for a person and, for the program, a class that errors.Is finds
// and that does not repeat itself in the text.
func Fail(class error, format string, args ...any) error {
	return &fault{text: fmt.Sprintf(format, args...), class: class}
}

type fault struct {
	text  string
	class error
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.class }

// final reports whether trying again is useless.
func final(err error) bool {
	var status *StatusError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, errMedium) ||
		errors.As(err, &status) && !status.temporary()
}
