package stager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"

	"github.com/headstart-serving/headstart/manifest"
)

// chunk is a chunk in flight, in ranges of one size, the last of which may be shorter.
type chunk struct {
	off   int64 // in the file
	buf   []byte
	size  int64        // of a range, bytes
	sums  []uint32     // of the ranges
	left  atomic.Int32 // ranges to come
	sum   uint32
	ready chan struct{} // closed when buf and sum are there
}

// send puts piece i of a file on its way and returns when it has its buffers. Each piece is a goroutine;
// the state of the file's hashes goes from one to the next, so pieces are hashed in order, while their
// chunks arrive and their bytes leave in any.
func (t *transfer) send(ctx context.Context, j *job, i int) error {
	if i < len(j.pieces) {
		p := &j.pieces[i]
		chunks, err := t.fetchAll(ctx, j, p)
		if err != nil {
			return err
		}
		in, out := j.hashed, make(chan *sums, 1)
		t.group.Go(func() error { return t.part(ctx, j, p, chunks, in, out) })
		j.hashed = out
	}
	if last := j.hashed; i+1 >= len(j.pieces) {
		t.group.Go(func() error { return t.end(ctx, j, last) })
	}
	return nil
}

// fetchAll begins to fetch what the piece lacks.
func (t *transfer) fetchAll(ctx context.Context, j *job, p *piece) ([]*chunk, error) {
	if p.have != nil {
		return nil, nil
	}
	var chunks []*chunk
	for off := p.Offset; off < p.Offset+p.Size; off += t.ChunkSize {
		buf, err := t.buffers.get(ctx)
		if err != nil {
			return nil, err
		}
		n := min(t.ChunkSize, p.Offset+p.Size-off)
		c := &chunk{off: off, buf: buf[:n], size: rangeSize(n, t.gate.wide(), t.buffers.most, t.asked), ready: make(chan struct{})}
		c.sums = make([]uint32, manifest.NumChunks(n, c.size))
		c.left.Store(int32(len(c.sums)))
		chunks = append(chunks, c)
		t.asked += n
		for i := range c.sums {
			if err := t.gate.enter(ctx); err != nil {
				return nil, err
			}
			t.group.Go(func() error {
				defer t.gate.leave()
				return t.fetch(ctx, j, c, int64(i))
			})
		}
	}
	return chunks, nil
}

// fetch receives range i of a chunk and sums it while it is hot in the processor's cache.
func (t *transfer) fetch(ctx context.Context, j *job, c *chunk, i int64) error {
	buf := c.buf[i*c.size : min((i+1)*c.size, int64(len(c.buf)))]
	off := c.off + i*c.size
	r, err := t.Source.Open(ctx, t.model, j.RemoteFile, off, int64(len(buf)))
	if err != nil {
		return err
	}
	defer r.Close()
	t.Metrics.inFlight.Add(float64(len(buf)))
	defer t.Metrics.inFlight.Sub(float64(len(buf)))
	const block = 256 << 10
	for at := 0; at < len(buf); at += block {
		b := buf[at:min(at+block, len(buf))]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("%s: the source ended at byte %d of %d: %w", j.Path, off+int64(at), j.Size, io.ErrUnexpectedEOF)
			}
			return err
		}
		c.sums[i] = crc32.Update(c.sums[i], manifest.Castagnoli, b)
		t.arrived.Add(int64(len(b)))
		t.meter.event(Advanced, j.Path, j.Size, int64(len(b)), 0)
	}
	if c.left.Add(-1) == 0 {
		c.sum = combine(c.sums, int64(len(c.buf)), c.size)
		t.Metrics.chunks.Inc()
		close(c.ready)
	}
	return nil
}

// part hashes a part when its turn comes, and stores it.
func (t *transfer) part(ctx context.Context, j *job, p *piece, chunks []*chunk, in <-chan *sums, out chan<- *sums) error {
	var s *sums
	select {
	case s = <-in:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	first := p.Offset / t.ChunkSize
	if p.have != nil {
		if err := t.take(s, j, p); err != nil {
			return err
		}
		copy(j.chunks[first:], p.have.Chunks)
		out <- s
		j.stored <- struct{}{}
		return nil
	}
	n := note{Before: s.state()}
	data := make([][]byte, len(chunks))
	for i, c := range chunks {
		select {
		case <-c.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		s.Write(c.buf)
		data[i], j.chunks[first+int64(i)] = c.buf, c.sum
		n.Chunks = append(n.Chunks, c.sum)
	}
	n.After = s.state()
	p.CRC32C, p.Note = combine(n.Chunks, p.Size, t.ChunkSize), n.marshal()
	if err := t.store(ctx, j, p, data, s, out); err != nil {
		return err
	}
	for _, c := range chunks {
		t.buffers.put(c.buf)
	}
	j.stored <- struct{}{}
	return nil
}

// store writes a part, or a file that is no larger than one: such a file is checked first.
func (t *transfer) store(ctx context.Context, j *job, p *piece, data [][]byte, s *sums, out chan<- *sums) error {
	if j.upload != nil {
		out <- s // the next part need not wait for this one's upload
		if err := j.upload.Write(ctx, p.Part, data); err != nil {
			return fmt.Errorf("%s: %w", j.Path, err)
		}
		t.meter.event(Advanced, j.Path, j.Size, 0, p.Size)
		return nil
	}
	if err := s.check(j.RemoteFile); err != nil {
		return err
	}
	if err := t.Store.Put(ctx, t.model.Object(j.Path), 0, data...); err != nil {
		return fmt.Errorf("%s: %w", j.Path, err)
	}
	t.meter.event(Advanced, j.Path, j.Size, 0, p.Size)
	out <- s
	return nil
}

// take goes over a part that an earlier run left.
func (t *transfer) take(s *sums, j *job, p *piece) error {
	if !bytes.Equal(s.state(), p.have.Before) {
		// One of two runs received wrong bytes, and which one is not known.
		return t.wrong(j, &manifest.MismatchError{Path: j.Path, Offset: 0, Size: p.Offset, Sum: "sha256", Want: "what an earlier run received", Got: "other bytes"})
	}
	if err := s.restore(p.have.After); err != nil {
		return fmt.Errorf("%s: part at %d: %w", j.Path, p.Offset, err)
	}
	t.meter.took(j.Path, j.Size, p.Size)
	return nil
}

// end waits for the parts of a file, checks the whole, and makes it visible.
func (t *transfer) end(ctx context.Context, j *job, last <-chan *sums) error {
	var s *sums
	select {
	case s = <-last:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for range j.pieces {
		select {
		case <-j.stored:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	file := manifest.File{Path: j.Path, Size: j.Size, SHA256: s.digest(), CRC32C: combine(j.chunks, j.Size, t.ChunkSize), Chunks: j.chunks}
	if err := t.commit(ctx, j, file, s); err != nil {
		return err
	}
	t.files[j.index] = file
	t.Log.Debug("stored", "path", j.Path, "bytes", j.Size, "sha256", file.SHA256)
	t.meter.file(file, sent)
	return nil
}

func (t *transfer) commit(ctx context.Context, j *job, file manifest.File, s *sums) error {
	if j.upload == nil {
		if j.Size > 0 {
			return nil // visible since its only part was stored
		}
		if err := s.check(j.RemoteFile); err != nil {
			return err
		}
		return t.Store.Put(ctx, t.model.Object(j.Path), 0)
	}
	if err := s.check(j.RemoteFile); err != nil {
		return t.wrong(j, err)
	}
	if err := t.keep(ctx, file); err != nil {
		return fmt.Errorf("%s: recording its sums: %w", j.Path, err)
	}
	parts := make([]Part, len(j.pieces))
	for i := range j.pieces {
		parts[i] = j.pieces[i].Part
	}
	if err := j.upload.Commit(ctx, parts); err != nil {
		return fmt.Errorf("%s: %w", j.Path, err)
	}
	return nil
}

// wrong notes that the parts of a file do not make up the file. They are removed when nothing writes
// any more, so that the next run begins the file anew. Where a part is an earlier run's, the fault may have
// been that run's, and be over.
func (t *transfer) wrong(j *job, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.discard = append(t.discard, j)
	return fmt.Errorf("%w: run again, and all of it is received anew", err)
}
