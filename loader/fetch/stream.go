package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// stream is one of the workers. What it needs for a chunk it makes once and uses again.
type stream struct {
	engine *Engine
	guard  *guard

	// The engine's mutex guards what follows.
	busy  bool      // it has a job, or pauses after one that failed
	size  int64     // bytes that the job may have in flight
	began time.Time // when the job was taken
	hedge *hedge    // the second request for its chunk
}

// run takes one job after the other.
func (s *stream) run(ctx context.Context) {
	debug.SetPanicOnFault(true) // of this goroutine only: see fill
	defer s.guard.close()
	e := s.engine
	failures := 0
	for ctx.Err() == nil {
		d, ok := e.take(s)
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
		err := s.fetch(d.load, d.chunk)
		// Wrong bytes say nothing about the server's health, nor does a connection that brought much or
		// was only slower than others; any other failure may come of too much load.
		switch {
		case err == nil || gained(err):
			failures = 0
		case d.load.ctx.Err() == nil && !mismatched(err):
			if failures++; failures > 1 {
				sleep(ctx, backoff(failures-1))
			}
		}
	}
}

// fetch brings one chunk, or more of it, through one connection. It returns why it failed after the
// load has been told.
func (s *stream) fetch(l *Load, i int) error {
	e := s.engine
	r := l.locate(i)
	there, err := s.recheck(l, r)
	var n int64
	if err == nil && !there {
		n, err = s.receive(l, i, r)
	}
	if err != nil {
		e.failed(s, l, i, err)
		return err
	}
	if there {
		e.metrics.chunk(recheckedOutcome)
	} else {
		e.metrics.chunk(verifiedOutcome)
	}
	e.arrived(s, l, i, n)
	return nil
}

// recheck reports whether a chunk of an earlier boot is still there. Few are: the buffer may be new
// each time.
func (s *stream) recheck(l *Load, r ref) (bool, error) {
	if !l.entry.Suspect(r.file, r.chunk) {
		return false, nil
	}
	there, err := l.entry.Recheck(r.file, r.chunk, make([]byte, piece))
	if err != nil {
		return false, ofMedium(err)
	}
	return there, nil
}

// partial is why a connection ended before its chunk did.
type partial struct {
	error
	part   part  // of the chunk: the next attempt goes on behind it
	gained int64 // bytes that this connection brought
}

func (p *partial) Unwrap() error { return p.error }

// gained reports whether a connection that failed says nothing against the next one.
func gained(err error) bool {
	var p *partial
	return errors.Is(err, errBehind) || errors.As(err, &p) && p.gained >= telling
}

// mismatched reports whether a chunk's bytes were wrong.
func mismatched(err error) bool {
	return errors.As(err, new(*manifest.MismatchError))
}

// receive brings what is missing of a chunk into its place, checks and commits it, and returns its size.
// Only this goroutine writes there: what a second request brings is copied here.
func (s *stream) receive(l *Load, i int, r ref) (int64, error) {
	e := s.engine
	p, err := l.entry.Chunk(r.file, r.chunk)
	if err != nil {
		return 0, ofMedium(err)
	}
	c := l.chunk(r)
	had := l.partOf(i)
	e.metrics.inFlight.Add(float64(len(p)))
	defer e.metrics.inFlight.Sub(float64(len(p)))
	now, err := receive(l.ctx, e.cfg.Source, s.guard, l.keys[r.file], c.Offset, p, l.entry.InMemory(), had)
	err = e.check(l, c, now, err)
	if second := e.second(s, err); second != nil {
		if err := place(p, second.buf); err != nil {
			second.free()
			return 0, err
		}
		second.free()
		e.metrics.received(now.n, 0)
		if !errors.Is(err, errBeaten) {
			e.metrics.refetches.WithLabelValues(cause(err)).Inc()
		}
		err = nil
	}
	if err != nil {
		if mismatched(err) {
			e.metrics.received(now.n, 0)
			return 0, err
		}
		return 0, &partial{error: err, part: now, gained: now.n - had.n}
	}
	if err := l.entry.Commit(r.file, r.chunk); err != nil {
		return 0, ofMedium(err)
	}
	e.metrics.received(c.Size, c.Size)
	return c.Size, nil
}

// check says what came of a chunk's connection: err is why it ended early.
func (e *Engine) check(l *Load, c manifest.Chunk, got part, err error) error {
	f := &l.m.Files[c.File]
	if errors.Is(err, io.EOF) {
		return &manifest.MismatchError{Path: f.Path, Offset: c.Offset, Size: c.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: "smaller (the object ends before)"}
	}
	if err != nil {
		return fmt.Errorf("%s at %d: %w", f.Path, c.Offset+got.n, err)
	}
	if err = l.m.Check(c, got.sum); err != nil {
		if s, ok := e.cfg.Source.(Refresher); ok {
			s.Refresh()
		}
	}
	return err
}
