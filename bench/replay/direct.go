package replay

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The measures of a reader that wants no mapping: what Run:ai's streamer asks for at a time, and how often at once.
const (
	piece  = 8 << 20 // bytes
	pieces = 16
)

// direct reads a shard whole into memory of this process: around the page cache where the file system
// lets it, else, when O_DIRECT is refused at open, through it. So do Run:ai's streamer and InstantTensor.
func (r *reader) direct(ctx context.Context, path string) (*mapping, error) {
	f, size, err := r.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	from, err := os.OpenFile(r.at(path), os.O_RDONLY|unix.O_DIRECT, 0)
	switch {
	case errors.Is(err, unix.EINVAL):
		from = f
	case err != nil:
		return nil, err
	default:
		defer from.Close()
		r.result.Direct++
	}
	// Whole pages: O_DIRECT takes addresses, offsets and lengths in blocks. A read ends early where the file does.
	page := int64(os.Getpagesize())
	b, err := unix.Mmap(-1, 0, int((size+page-1)/page*page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("memory for %s: %w", path, err)
	}
	m := &mapping{path, b[:size]}
	if err := r.fill(ctx, from, path, b, size); err != nil {
		m.unmap()
		return nil, err
	}
	return m, nil
}

// fill reads size bytes into b, pieces of them side by side.
func (r *reader) fill(ctx context.Context, f *os.File, path string, b []byte, size int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pieces)
	for off := int64(0); off < size; off += piece {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(off+piece, int64(len(b)))
			n, err := f.ReadAt(b[off:end], off)
			if off+int64(n) < min(end, size) {
				return fmt.Errorf("%s: reading bytes %d to %d: %w", path, off, min(end, size), err)
			}
			if off == 0 {
				r.step(path, 0)
			}
			return nil
		})
	}
	return g.Wait()
}
