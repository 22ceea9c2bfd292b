package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// Damage is what is wrong with one file in a bucket.
type Damage struct {
	Path   string
	Errors []*manifest.MismatchError // at least one, in the order of offsets; one for each chunk that differs
}

// VerifyBucket reads every file of a staged model back and compares its size, each chunk's CRC32C and its
// sha256 with the manifest. It goes on after damage and returns all of it, in the manifest's order; the
// error is about what could not be read. progress is told, from several goroutines, how many more bytes
// were read; it may be nil.
//
// Chunks arrive in parallel, within a file too, and are hashed in order, several files at once. At most
// verifyMemory bytes are held, but one chunk at least.
func VerifyBucket(ctx context.Context, src Source, m *manifest.Manifest, progress func(bytes int64)) ([]Damage, error) {
	if progress == nil {
		progress = func(int64) {}
	}
	v := &verification{src: src, m: m, progress: progress, found: make([][]*manifest.MismatchError, len(m.Files))}
	if err := v.run(ctx); err != nil {
		return nil, fmt.Errorf("verifying %s: %w", m.Model, err)
	}
	var all []Damage
	for i, errs := range v.found {
		if len(errs) > 0 {
			all = append(all, Damage{m.Files[i].Path, errs})
		}
	}
	return all, nil
}

const (
	verifyStreams  = 16
	verifyMemory   = 384 << 20
	verifyStall    = 20 * time.Second
	verifyAttempts = 8 // of a chunk, where it does not arrive
	verifyReads    = 3 // of a chunk, where it arrives with other bytes: the bucket may be right and the way wrong
)

// verification is one run of VerifyBucket.
type verification struct {
	src      Source
	m        *manifest.Manifest
	progress func(int64)
	found    [][]*manifest.MismatchError // by file; a file's belong to the chunk whose turn it is
}

func (v *verification) run(ctx context.Context) error {
	files, err := v.sizes(ctx)
	if err != nil {
		return err
	}
	buffers := make(chan []byte, int(max(1, min(2*verifyStreams, verifyMemory/v.m.ChunkSize))))
	for range cap(buffers) {
		buffers <- nil // made when it is needed
	}
	slots := make(chan struct{}, verifyStreams)
	group, ctx := errgroup.WithContext(ctx)
	turn := make(map[int]chan hash.Hash) // of the next chunk of each file
	// One goroutine alone hands out buffers, in an order in which no chunk stands before one that it waits for.
	group.Go(func() error {
		for c := range interleaved(v.m, files, max(2, runtime.GOMAXPROCS(0))) {
			var buf []byte
			select {
			case buf = <-buffers:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			in, out := turn[c.File], make(chan hash.Hash, 1)
			if in == nil {
				in = make(chan hash.Hash, 1)
				in <- sha256.New()
			}
			turn[c.File] = out
			group.Go(func() error {
				if int64(len(buf)) < c.Size {
					buf = make([]byte, c.Size)
				}
				err := v.chunk(ctx, c, buf[:c.Size], slots, in, out)
				buffers <- buf
				return err
			})
		}
		return nil
	})
	return group.Wait()
}

// sizes compares the listing with the manifest, and returns the files that are worth reading.
func (v *verification) sizes(ctx context.Context) ([]int, error) {
	sizes := make(map[string]int64)
	for o, err := range v.src.List(ctx, v.m.Model.Object("")) {
		if err != nil {
			return nil, err
		}
		sizes[o.Key] = o.Size
	}
	var files []int
	for i := range v.m.Files {
		f := &v.m.Files[i]
		size, ok := sizes[v.m.Model.Object(f.Path)]
		switch {
		case !ok:
			v.add(i, wrongSize(f, "none (the object is missing)"))
		case size != f.Size:
			v.add(i, wrongSize(f, fmt.Sprint(size)))
		case size == 0:
			if sum := manifest.Digest(sha256.Sum256(nil)); f.SHA256 != sum {
				v.add(i, wrongDigest(f, sum))
			}
		default:
			files = append(files, i)
		}
	}
	return files, nil
}

func (v *verification) add(file int, err error) {
	var mismatch *manifest.MismatchError
	if errors.As(err, &mismatch) {
		v.found[file] = append(v.found[file], mismatch)
	}
}

func wrongDigest(f *manifest.File, got manifest.Digest) error {
	return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "sha256", Want: f.SHA256.String(), Got: got.String()}
}

// interleaved iterates over the chunks of files, of so many files in turn, so that as many are hashed at once.
func interleaved(m *manifest.Manifest, files []int, width int) iter.Seq[manifest.Chunk] {
	return func(yield func(manifest.Chunk) bool) {
		type reading struct{ file, next int }
		var open []reading
		for len(files) > 0 || len(open) > 0 {
			for len(open) < width && len(files) > 0 {
				open, files = append(open, reading{file: files[0]}), files[1:]
			}
			rest := open[:0]
			for _, r := range open {
				f := &m.Files[r.file]
				off := int64(r.next) * m.ChunkSize
				if !yield(manifest.Chunk{File: r.file, Index: r.next, Offset: off, Size: min(m.ChunkSize, f.Size-off), CRC32C: f.Chunks[r.next]}) {
					return
				}
				if r.next++; r.next < len(f.Chunks) {
					rest = append(rest, r)
				}
			}
			open = rest
		}
	}
}

// chunk reads a chunk, and hashes it when its turn comes. What comes in is nil, and what goes out, where the
// file is known to be damaged.
func (v *verification) chunk(ctx context.Context, c manifest.Chunk, buf []byte, slots chan struct{}, in <-chan hash.Hash, out chan<- hash.Hash) error {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	wrong, err := v.read(ctx, c, buf)
	<-slots
	if err != nil {
		return err
	}
	v.progress(c.Size)
	var sum hash.Hash
	select {
	case sum = <-in:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f := &v.m.Files[c.File]
	switch {
	case wrong != nil:
		v.add(c.File, wrong)
		sum = nil
	case sum != nil:
		sum.Write(buf)
		if c.Index == len(f.Chunks)-1 {
			if got := manifest.Digest(sum.Sum(nil)); got != f.SHA256 {
				v.add(c.File, wrongDigest(f, got))
			}
		}
	}
	out <- sum
	return nil
}

// read fills buf, and returns what is wrong with it, or why it cannot be read.
func (v *verification) read(ctx context.Context, c manifest.Chunk, buf []byte) (wrong, err error) {
	f := &v.m.Files[c.File]
	g := newGuard(verifyStall, new(pace), nil)
	defer g.close()
	for attempts, reads := 1, 1; ; {
		got, err := receive(ctx, v.src, g, v.m.Model.Object(f.Path), c.Offset, buf, true, part{cuts: maxCuts})
		switch {
		case err == nil || errors.Is(err, io.EOF):
			if wrong = v.m.Check(c, got.sum); err != nil {
				wrong = &manifest.MismatchError{Path: f.Path, Offset: c.Offset, Size: c.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: "smaller (the object ends before)"}
			}
			if wrong == nil || reads == verifyReads {
				return wrong, nil
			}
			reads++
			if s, ok := v.src.(Refresher); ok {
				s.Refresh()
			}
		case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNoBucket):
			return &manifest.MismatchError{Path: f.Path, Offset: c.Offset, Size: c.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: "none (the object was removed)"}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case final(err) || attempts == verifyAttempts:
			return nil, fmt.Errorf("reading %s at %d: %w", f.Path, c.Offset, err)
		default:
			if !sleep(ctx, backoff(attempts)) {
				return nil, context.Cause(ctx)
			}
			attempts++
		}
	}
}
