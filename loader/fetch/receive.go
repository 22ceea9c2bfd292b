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

// StraightReader is implemented by bodies whose bytes a device can write straight to memory, past the
// processor and the page cache. ReadStraight is Read, but for that it takes as much as it likes of p at
// once. It may be called with p in anonymous memory or in a mapping of a tmpfs alone: a page of another file
// that a device writes to while the kernel writes it back may be lost.
type StraightReader interface {
	ReadStraight(p []byte) (int, error)
}

var errMedium = errors.New("the cache's medium failed")

// ofMedium makes an error of the entry final. A file that somebody changed is no fault of the medium:
// the entry's own words say it all.
func ofMedium(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return &fault{text: err.Error(), class: errors.Join(errMedium, err)}
	}
	return fmt.Errorf("%w: %w", errMedium, err)
}

// part is what of a chunk has come.
type part struct {
	n    int64  // bytes
	sum  uint32 // their CRC32C
	cuts int    // connections that were given up because others were faster
}

// receive reads what p lacks of len(p) bytes of an object from off, through one connection. had is what
// of p is there; it returns what is there afterwards. memory says that p is no mapping of a file on a disk.
// An object that ends before is io.EOF.
func receive(ctx context.Context, src Source, g *guard, key string, off int64, p []byte, memory bool, had part) (part, error) {
	rest := p[had.n:]
	ctx = g.begin(ctx, len(rest) >= telling && had.cuts < maxCuts)
	now, err := connect(ctx, src, g, key, off+had.n, rest, memory, had)
	if cut := g.end(); err != nil && cut != nil {
		err = cut
	}
	if errors.Is(err, errBehind) {
		now.cuts++
	}
	return now, err
}

func connect(ctx context.Context, src Source, g *guard, key string, off int64, rest []byte, memory bool, had part) (part, error) {
	body, err := src.Open(ctx, key, off, int64(len(rest)))
	if err != nil {
		return had, err
	}
	defer body.Close()
	straight, ok := body.(StraightReader)
	if !ok || !memory {
		straight = nil
	}
	return fill(body, straight, rest, had, g)
}

// fill reads p full, straight where that is not nil. g is told after each read.
//
// p is mapped: if its medium fails (a disk error, a file that somebody truncated), touching it is a
// fault, which the workers ask to have as a panic (debug.SetPanicOnFault), and reading into it EFAULT.
func fill(body io.Reader, straight StraightReader, p []byte, had part, g *guard) (now part, err error) {
	defer recoverFault(&err)
	now = had
	empty := 0
	for len(p) > 0 {
		var n int
		var err error
		if straight != nil {
			n, err = straight.ReadStraight(p)
		} else {
			n, err = body.Read(p[:min(piece, len(p))])
		}
		now.sum = crc32.Update(now.sum, manifest.Castagnoli, p[:n])
		now.n += int64(n)
		p = p[n:]
		if n > 0 {
			empty = 0
			g.move(n)
		}
		switch {
		case len(p) == 0:
			return now, nil
		case errors.Is(err, syscall.EFAULT):
			return now, fmt.Errorf("%w: %w", errMedium, err)
		case err != nil:
			return now, err
		case n == 0:
			if empty++; empty == 100 {
				return now, io.ErrNoProgress
			}
		}
	}
	return now, nil
}

// place copies what was received elsewhere into the mapping p.
func place(p, from []byte) (err error) {
	defer recoverFault(&err)
	copy(p, from)
	return nil
}

// recoverFault turns a fault of memory into an error of the medium. It is deferred.
func recoverFault(err *error) {
	r := recover()
	if r == nil {
		return
	}
	fault, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		panic(r)
	}
	*err = fmt.Errorf("%w: %v", errMedium, fault)
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
