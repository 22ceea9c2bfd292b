package fetch

import (
	"context"
	"sync"
	"time"
)

const (
	hedgeShare   = 20       // one of so many chunks may be asked for twice
	hedgeFirst   = 2        // … beside so many at any time
	hedgesAtAll  = 2        // at once
	hedgeLargest = 32 << 20 // bytes: of a larger chunk there is no second request, it lies in memory
)

// hedge is a second request for a chunk that a reader waits for and that is late against the others. It
// receives into memory of its own and is checked there. The stream that had the chunk before takes the
// bytes if it is not through by then: so one goroutine alone writes to the chunk's place, and exactly one
// of the two requests counts.
type hedge struct {
	engine *Engine
	cancel context.CancelFunc
	done   chan struct{} // closed when buf is checked, or never will be
	buf    []byte

	// The engine's mutex guards what follows.
	good      bool
	finished  bool
	abandoned bool // the stream does not want it
}

// buffers are those of hedges, of hedgeLargest bytes at most.
var buffers sync.Pool

func buffer(n int64) []byte {
	if b, ok := buffers.Get().(*[]byte); ok && int64(cap(*b)) >= n {
		return (*b)[:n]
	}
	return make([]byte, n)
}

func (h *hedge) free() {
	b := h.buf
	h.buf = nil
	buffers.Put(&b)
}

// watchLate has the engine look at a chunk in flight that a reader waits for, when it is late.
// The caller holds e.mu.
func (e *Engine) watchLate(l *Load, i int) {
	a, s := l.waiting[i], l.flights[i]
	if a == nil || s == nil || s.hedge != nil || l.over {
		return
	}
	wait, sure := e.pace.late(l.chunk(l.locate(i)).Size)
	if !sure {
		wait = time.Since(s.began) + lateFirst // until more is known
	}
	wait = max(wait-time.Since(s.began), 0)
	if a.late == nil {
		a.late = time.AfterFunc(wait, func() { e.late(l, i, a) })
		return
	}
	a.late.Reset(wait)
}

// late asks a second time for a chunk that is late.
func (e *Engine) late(l *Load, i int, a *arrival) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := l.flights[i]
	if l.waiting[i] != a || s == nil || s.hedge != nil || l.over || e.stopped {
		return
	}
	r := l.locate(i)
	size := l.chunk(r).Size
	if wait, sure := e.pace.late(size); !sure || time.Since(s.began) < wait {
		e.watchLate(l, i)
		return
	}
	if size > hedgeLargest {
		return
	}
	if e.hedging >= hedgesAtAll || e.hedged >= hedgeFirst+e.taken/hedgeShare {
		e.metrics.hedges.WithLabelValues("not made").Inc()
		return
	}
	e.hedging++
	e.hedged++
	ctx, cancel := context.WithCancel(l.ctx)
	h := &hedge{engine: e, cancel: cancel, done: make(chan struct{})}
	s.hedge = h
	e.cfg.Log.Debug("a chunk is late and is asked for a second time", "model", l.m.Model.String(), "path", l.m.Files[r.file].Path, "chunk", r.chunk)
	e.background.Go(func() { h.run(ctx, l, r, s) })
}

// run receives the chunk of s a second time.
func (h *hedge) run(ctx context.Context, l *Load, r ref, s *stream) {
	defer h.cancel()
	e := h.engine
	c := l.chunk(r)
	buf := buffer(c.Size)
	e.metrics.inFlight.Add(float64(c.Size))
	g := newGuard(e.cfg.Stall, e.pace, &e.received)
	got, err := receive(ctx, e.cfg.Source, g, l.keys[r.file], c.Offset, buf, true, part{cuts: maxCuts})
	g.close()
	e.metrics.inFlight.Sub(float64(c.Size))
	if ctx.Err() == nil {
		err = e.check(l, c, got, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hedging--
	h.buf, h.good, h.finished = buf, err == nil && ctx.Err() == nil, true
	close(h.done)
	if h.abandoned {
		h.free()
		return
	}
	if h.good {
		s.guard.cut(errBeaten)
	}
}

// second ends the second request for the chunk of a stream, if there was one, and returns it if its bytes
// are the ones to take: it brought them, and the stream's own request did not (err is why). Whoever gets
// it frees it.
func (e *Engine) second(s *stream, err error) *hedge {
	e.mu.Lock()
	h := s.hedge
	s.hedge = nil
	if h == nil {
		e.mu.Unlock()
		return nil
	}
	if err == nil || final(err) {
		e.abandon(h)
		e.mu.Unlock()
		return nil
	}
	e.mu.Unlock()
	<-h.done // its guard sees to that
	if !h.good {
		h.free()
		e.metrics.hedges.WithLabelValues("failed").Inc()
		return nil
	}
	e.metrics.hedges.WithLabelValues("won").Inc()
	return h
}

// abandon gives a second request up that is not needed. The caller holds e.mu.
func (e *Engine) abandon(h *hedge) {
	h.abandoned = true
	h.cancel()
	if h.finished {
		h.free()
	}
	e.metrics.hedges.WithLabelValues("lost").Inc()
}
