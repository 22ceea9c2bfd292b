package fetch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errStalled = errors.New("the connection gave no byte for too long")
	errBehind  = errors.New("the connection is much slower than the others")
	errBeaten  = errors.New("a second request for the same chunk was faster")
)

// guard watches the connection that one stream receives through. It cuts one that gives no byte for a
// time, and one that lags behind the others. A stream has one guard for all its chunks.
type guard struct {
	stall time.Duration
	pace  *pace
	total *atomic.Int64 // takes the bytes that come; may be nil
	timer *time.Timer

	mu     sync.Mutex
	parent context.Context
	ctx    context.Context // of requests: kept from chunk to chunk until it was cancelled
	cancel context.CancelCauseFunc
	on     bool
	judged bool      // whether it is also compared with the others
	moved  time.Time // when the last byte came
	since  time.Time // when the stretch began that is judged next
	n      int64     // bytes of that stretch
}

func newGuard(stall time.Duration, pace *pace, total *atomic.Int64) *guard {
	g := &guard{stall: stall, pace: pace, total: total}
	g.timer = time.AfterFunc(time.Hour, g.look)
	g.timer.Stop()
	return g
}

// begin returns the context for one connection; it ends with parent.
func (g *guard) begin(parent context.Context, judged bool) context.Context {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.parent != parent || g.ctx.Err() != nil {
		g.drop()
		g.parent = parent
		g.ctx, g.cancel = context.WithCancelCause(parent)
	}
	g.on, g.judged, g.n = true, judged, 0
	g.moved = time.Now()
	g.since = g.moved
	g.timer.Reset(g.next())
	return g.ctx
}

// move takes note of n bytes that came.
func (g *guard) move(n int) {
	g.mu.Lock()
	g.moved = time.Now()
	g.n += int64(n)
	g.mu.Unlock()
	if g.total != nil {
		g.total.Add(int64(n))
	}
}

// end stops watching. It returns why the connection was cut, nil if it was not.
func (g *guard) end() error {
	g.timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	if g.n >= telling {
		g.pace.add(g.n, g.moved.Sub(g.since))
	}
	if g.ctx.Err() != nil && g.parent.Err() == nil {
		return context.Cause(g.ctx)
	}
	return nil
}

// look is called by the timer.
func (g *guard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case !g.on: // the timer was too late
		return
	case now.Sub(g.moved) >= g.stall:
		g.cancel(errStalled)
		return
	case g.judged && now.Sub(g.since) >= g.pace.watch():
		if g.pace.behind(g.n, now.Sub(g.since)) {
			g.cancel(errBehind)
			return
		}
		g.since, g.n = now, 0
	}
	g.timer.Reset(max(g.next(), time.Millisecond))
}

// next returns the time until the connection is to be looked at.
func (g *guard) next() time.Duration {
	now := time.Now()
	d := g.stall - now.Sub(g.moved)
	if g.judged {
		d = min(d, g.pace.watch()-now.Sub(g.since))
	}
	return d
}

// cut ends the connection that is being watched, if one is.
func (g *guard) cut(cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.on {
		g.cancel(cause)
	}
}

// close gives the last context back.
func (g *guard) close() {
	g.timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop()
	g.parent, g.ctx, g.cancel = nil, nil, nil
}

func (g *guard) drop() {
	if g.cancel != nil {
		g.cancel(nil)
	}
}
