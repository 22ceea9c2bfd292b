package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"syscall"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// piece is how much is read at once, in bytes: the sum of a piece is computed while it is still in
// the processor's second-level cache.
const piece = 256 << 10

var (
	errStalled = errors.New("the connection gave no byte for too long")
	errMedium  = errors.New("the cache's medium failed")
)

// ofMedium makes an error of the entry final. A file that somebody changed is no fault of the medium:
// the entry's own words say it all.
func ofMedium(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return &fault{text: err.Error(), class: errors.Join(errMedium, err)}
	}
	return fmt.Errorf("%w: %w", errMedium, err)
}

// receive fills p with len(p) bytes of an object from off and returns their CRC32C. An object that
// ends before is io.EOF. After stall without a byte it gives up with errStalled.
func receive(ctx context.Context, src Source, key string, off int64, p []byte, stall time.Duration) (sum uint32, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(stall, func() { cancel(errStalled) })
	defer timer.Stop()
	defer func() {
		if err != nil && context.Cause(ctx) == errStalled {
			err = errStalled
		}
	}()
	body, err := src.Open(ctx, key, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return fill(body, p, func() { timer.Reset(stall) })
}

// fill reads p full. alive is called after each piece.
//
// p is mapped: if its medium fails (a disk error, a file that somebody truncated), touching it is a
// fault, which the workers ask to have as a panic (debug.SetPanicOnFault), and reading into it EFAULT.
func fill(body io.Reader, p []byte, alive func()) (sum uint32, err error) {
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(interface {
				runtime.Error
				Addr() uintptr
			})
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("%w: %v", errMedium, fault)
		}
	}()
	empty := 0
	for len(p) > 0 {
		n, err := body.Read(p[:min(piece, len(p))])
		sum = crc32.Update(sum, manifest.Castagnoli, p[:n])
		p = p[n:]
		switch {
		case len(p) == 0:
			return sum, nil
		case errors.Is(err, syscall.EFAULT):
			return 0, fmt.Errorf("%w: %w", errMedium, err)
		case err != nil:
			return 0, err
		case n > 0:
			empty = 0
			alive()
		default:
			if empty++; empty == 100 {
				return 0, io.ErrNoProgress
			}
		}
	}
	return sum, nil
}

// backoff returns the pause before the next attempt after n failures in a row: it doubles from 0.1 s
// to 10 s and is spread over its upper half, so that streams that failed together part.
func backoff(n int) time.Duration {
	d := 10 * time.Second
	if n < 7 {
		d = 100 * time.Millisecond << n
	}
	return d/2 + rand.N(d/2)
}
