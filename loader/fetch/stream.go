package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/headstart-serving/headstart/manifest"
)

// stream is one of the workers.
func (e *Engine) stream(ctx context.Context) {
	debug.SetPanicOnFault(true) // of this goroutine only: see fill
	failures := 0
	for ctx.Err() == nil {
		d, ok := e.take()
		if !ok {
			select {
			case <-e.wake:
			case <-ctx.Done():
			}
			continue
		}
		if d.chunk == seal {
			e.finish(d.load, d.load.entry.Seal())
			continue
		}
		err := e.fetch(d.load, d.chunk)
		// Wrong bytes say nothing about the server's health; any other failure may come of too much load.
		var mismatch *manifest.MismatchError
		switch {
		case err == nil:
			failures = 0
		case d.load.ctx.Err() == nil && !errors.As(err, &mismatch):
			if failures++; failures > 1 {
				sleep(ctx, backoff(failures-1))
			}
		}
	}
}

// fetch brings one chunk, once. It returns why it failed after the load has been told.
func (e *Engine) fetch(l *Load, i int) error {
	r := l.locate(i)
	there, err := e.recheck(l, r)
	var n int64
	if err == nil && !there {
		n, err = e.receive(l, r)
	}
	if err != nil {
		e.failed(l, i, err)
		return err
	}
	if there {
		e.metrics.chunk(recheckedOutcome)
	} else {
		e.metrics.chunk(verifiedOutcome)
	}
	e.arrived(l, i, n)
	return nil
}

// recheck reports whether a chunk of an earlier boot is still there. Few are: the buffer may be new
// each time.
func (e *Engine) recheck(l *Load, r ref) (bool, error) {
	if !l.entry.Suspect(r.file, r.chunk) {
		return false, nil
	}
	there, err := l.entry.Recheck(r.file, r.chunk, make([]byte, piece))
	if err != nil {
		return false, ofMedium(err)
	}
	return there, nil
}

// receive brings a chunk into its place, checks and commits it, and returns its size.
func (e *Engine) receive(l *Load, r ref) (n int64, err error) {
	f := &l.m.Files[r.file]
	off := int64(r.chunk) * l.m.ChunkSize
	p, err := l.entry.Chunk(r.file, r.chunk)
	if err != nil {
		return 0, ofMedium(err)
	}
	c := manifest.Chunk{File: r.file, Index: r.chunk, Offset: off, Size: int64(len(p)), CRC32C: f.Chunks[r.chunk]}
	e.metrics.inFlight.Add(float64(len(p)))
	defer e.metrics.inFlight.Sub(float64(len(p)))
	var all int64
	defer func() { e.metrics.received(all, n) }()
	sum, err := receive(l.ctx, counted{e.cfg.Source, &all}, l.m.Model.Object(f.Path), off, p, e.cfg.Stall)
	if errors.Is(err, io.EOF) {
		return 0, &manifest.MismatchError{Path: f.Path, Offset: off, Size: c.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: "smaller (the object ends before)"}
	}
	if err != nil {
		return 0, fmt.Errorf("%s at %d: %w", f.Path, off, err)
	}
	if err := l.m.Check(c, sum); err != nil {
		if s, ok := e.cfg.Source.(Refresher); ok {
			s.Refresh()
		}
		return 0, err
	}
	if err := l.entry.Commit(r.file, r.chunk); err != nil {
		return 0, ofMedium(err)
	}
	return c.Size, nil
}
