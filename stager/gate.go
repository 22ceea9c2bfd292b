package stager

import (
	"context"
	"sync"
	"time"
)

// gate lets so many ranged reads be in flight. How many can change meanwhile. One goroutine alone enters;
// any may leave.
type gate struct {
	wake chan struct{} // something may have changed

	mu     sync.Mutex
	width  int
	inside int
	since  time.Time     // when the one at the gate began to wait; zero: nobody waits
	waited time.Duration // before that, since it was last asked for
}

func newGate(width int) *gate { return &gate{width: width, wake: make(chan struct{}, 1)} }

// enter waits until fewer than width are inside.
func (g *gate) enter(ctx context.Context) error {
	for !g.try() {
		select {
		case <-g.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (g *gate) try() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside >= g.width {
		if g.since.IsZero() {
			g.since = time.Now()
		}
		return false
	}
	g.inside++
	if !g.since.IsZero() {
		g.waited += time.Since(g.since)
		g.since = time.Time{}
	}
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	g.mu.Unlock()
	g.nudge()
}

func (g *gate) resize(width int) {
	g.mu.Lock()
	g.width = width
	g.mu.Unlock()
	g.nudge()
}

// wide returns how many may be inside.
func (g *gate) wide() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.width
}

func (g *gate) nudge() {
	select {
	case g.wake <- struct{}{}:
	default: // it is awake already
	}
}

// crowd returns for how long somebody stood at the gate since it was last asked.
func (g *gate) crowd() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	waited := g.waited
	if g.waited = 0; !g.since.IsZero() {
		now := time.Now()
		waited += now.Sub(g.since)
		g.since = now
	}
	return waited
}
