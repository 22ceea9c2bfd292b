package hf

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

var (
	errStalled = errors.New("no byte came for too long")
	errBehind  = errors.New("the connection is much slower than the others")
)

// stream is one connection's answer, which is cut when it stands, or lags behind the others.
type stream struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	guard  *guard
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.guard.came(n)
	if err != nil && err != io.EOF && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

func (s *stream) Close() error {
	s.guard.stop()
	err := s.ReadCloser.Close()
	s.cancel(nil)
	return err
}

// guard watches one request, from before it is sent until it is stopped.
type guard struct {
	source *Source
	judged bool                    // against the others, not only by Stall
	cut    context.CancelCauseFunc // ends the request

	began time.Time
	bytes atomic.Int64
	moved atomic.Int64 // when bytes came last, in nanoseconds after began
	ended chan struct{}
	done  chan struct{}
}

func (s *Source) watch(judged bool, cut context.CancelCauseFunc) *guard {
	g := &guard{source: s, judged: judged, cut: cut, began: time.Now(), ended: make(chan struct{}), done: make(chan struct{})}
	go g.run()
	return g
}

func (g *guard) came(n int) {
	g.bytes.Add(int64(n))
	g.moved.Store(int64(time.Since(g.began)))
}

// run looks at the request as often as the others' rates say, and when it may have stalled.
func (g *guard) run() {
	defer close(g.done)
	pace := &g.source.pace
	seen, since := int64(0), g.began
	for {
		// What the others' rates say may change while it waits, from nothing to something at the beginning.
		due := time.Until(since.Add(pace.watch()))
		stalled := time.Until(g.began.Add(time.Duration(g.moved.Load()) + g.source.Stall))
		timer := time.NewTimer(max(0, min(due, stalled, g.source.Lag)))
		select {
		case <-timer.C:
		case <-g.ended:
			timer.Stop()
			if n := g.bytes.Load() - seen; n >= progress { // less tells more of the round trip than of the rate
				pace.add(n, time.Since(since))
			}
			return
		}
		now := time.Now()
		if now.Sub(g.began)-time.Duration(g.moved.Load()) >= g.source.Stall {
			g.cut(errStalled)
			return
		}
		if now.Sub(since) < pace.watch() {
			continue
		}
		n := g.bytes.Load() - seen
		if pace.behind(n, now.Sub(since)) && g.judged {
			g.cut(errBehind)
			return
		}
		seen, since = seen+n, now
	}
}

// stop ends the watching.
func (g *guard) stop() {
	close(g.ended)
	<-g.done
}

// Cuts returns how many connections readers have given up because nothing came, and because they lagged behind
// the others.
func (s *Source) Cuts() (stalled, behind int64) { return s.stalled.Load(), s.behind.Load() }
