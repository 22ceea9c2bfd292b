package fetch

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

const (
	leastStreams = 2
	tuneWindow   = 250 * time.Millisecond
	riseWindow   = 50 * time.Millisecond // of the tuner's rise
	few          = 256 << 10             // bytes in one of those: there may be a handful of reads in it, or none
)

// tune fits the number of streams to what they bring, while there are loads. It starts more of them when
// there are too few; those that are too many find nothing to do.
func (e *Engine) tune(ctx context.Context, streams *sync.WaitGroup) {
	started := e.cfg.Streams
	t := newTuner(started, leastStreams, e.cfg.MaxStreams)
	for {
		select {
		case <-e.begun:
		case <-ctx.Done():
			return
		}
		every := func() time.Duration {
			if t.rising {
				return riseWindow
			}
			return tuneWindow
		}
		tick := time.NewTicker(every())
		t.settling = true
		for last := e.totals(); e.loading(); {
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return
			}
			now := e.totals()
			width := t.next(now.since(last))
			last = now
			tick.Reset(every())
			if width > started {
				e.grow(ctx, streams, width-started)
				started = width
			}
			e.widen(width)
		}
		tick.Stop()
	}
}

// totals is what a window is the difference of.
type totals struct {
	at        time.Time
	bytes     int64
	arrived   int // chunks that came or failed
	throttled int
	crowded   bool
}

func (e *Engine) totals() totals {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, more := e.peek()
	return totals{at: time.Now(), bytes: e.received.Load(), arrived: e.taken - e.busy, throttled: e.throttled, crowded: more && e.busy >= e.width}
}

func (now totals) since(last totals) window {
	throttled, ended, bytes := now.throttled-last.throttled, now.arrived-last.arrived, now.bytes-last.bytes
	return window{
		rate: float64(bytes) / now.at.Sub(last.at).Seconds(), few: bytes < few, ended: ended, crowded: now.crowded,
		refused: throttled > 0 && 2*throttled > ended,
	}
}

// loading reports whether there is a load that is not at rest.
func (e *Engine) loading() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.loads) > 0
}

// widen lets so many streams have a job.
func (e *Engine) widen(width int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if more := width - e.width; more > 0 {
		e.signal(more)
	}
	e.width = width
	e.metrics.streams.Set(float64(width))
}

// overload reports whether an answer says that there are too many requests.
func overload(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && (status.Code == http.StatusTooManyRequests || status.Code == http.StatusServiceUnavailable)
}
