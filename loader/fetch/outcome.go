package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/manifest"
)

// arrived tells the readers of a chunk that it is verified, and seals the entry after the last one.
func (e *Engine) arrived(s *stream, l *Load, i int, fetched int64) {
	e.mu.Lock()
	l.status[i] = finished
	l.missing--
	l.progress.Fetched += fetched
	l.progress.Reason = ""
	l.troubleAt = time.Time{}
	now := time.Now()
	l.recent.add(now, fetched)
	if l.progress.First.IsZero() {
		l.progress.First = now
	}
	if l.isHead(i) {
		l.headsMissing--
	}
	if l.headsMissing == 0 && l.progress.Heads.IsZero() {
		l.progress.Heads = now
	}
	if l.missing == 0 {
		l.progress.Filled = now
	}
	if a := l.waiting[i]; a != nil {
		delete(l.waiting, i)
		a.stop()
		close(a.ch)
	}
	delete(l.parts, i)
	e.landed(s, l, i)
	if f := l.locate(i).file; l.entry.FileComplete(f) {
		select {
		case <-l.files[f]:
		default:
			close(l.files[f])
		}
	}
	last := l.missing == 0
	if !last {
		e.released(l)
	}
	e.unlock()
	if last {
		e.finish(l, l.entry.Seal())
	}
}

// finish ends a load whose chunks are all there.
func (e *Engine) finish(l *Load, err error) {
	e.mu.Lock()
	defer e.unlock()
	if err == nil && !e.stopped {
		e.background.Go(func() { e.sync(l.entry) })
	}
	e.endLocked(l, err)
	e.released(l)
}

// Sync brings a complete entry to its disk in the background, as the engine does by itself with those
// that it completes: for entries that an earlier process completed. One that is there is left alone.
func (e *Engine) Sync(entry *cache.Entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.stopped {
		e.background.Go(func() { e.sync(entry) })
	}
}

func (e *Engine) sync(entry *cache.Entry) {
	err := entry.Sync(e.ctx)
	// Stopping the engine cuts this short; so does who removes the entry.
	if err == nil || e.ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	e.metrics.unsynced.Inc()
	e.cfg.Log.Error("the disk did not take a complete entry: it is read back before it is used again", "entry", entry.ID(), "err", err)
}

// failed decides what becomes of a chunk that did not arrive.
func (e *Engine) failed(s *stream, l *Load, i int, err error) {
	e.mu.Lock()
	defer e.unlock()
	defer e.released(l)
	e.landed(s, l, i)
	if l.over {
		return
	}
	l.status[i] = queued
	if final(err) {
		e.metrics.chunk(failedOutcome)
		e.endLocked(l, err)
		return
	}
	e.metrics.refetches.WithLabelValues(cause(err)).Inc()
	l.progress.Refetches++
	l.troubles[i]++
	l.keep(i, err)
	if overload(err) {
		e.throttled++
	}
	if gained(err) { // only the connection is gone: on at once, where it was
		l.troubles[i] = 1
		e.cfg.Log.Debug("a chunk goes on over another connection", "model", l.m.Model.String(), "err", err)
		e.demand(l, i)
		return
	}
	var mismatch *manifest.MismatchError
	if errors.As(err, &mismatch) {
		if l.mismatch[i]++; l.mismatch[i] >= e.cfg.Mismatches {
			e.metrics.chunk(failedOutcome)
			e.endLocked(l, fmt.Errorf("wrong bytes %d times, the object in the bucket differs from its manifest (%w): remove the object and stage the model again", l.mismatch[i], err))
			return
		}
		e.cfg.Log.Warn("a chunk has wrong bytes and is fetched again", "model", l.m.Model.String(), "attempt", l.mismatch[i], "err", err)
	} else if !e.patient(l, err) {
		return
	}
	time.AfterFunc(backoff(l.troubles[i]), func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.demand(l, i)
	})
}

// keep notes what has come of a chunk that failed. Wrong bytes are worth nothing.
func (l *Load) keep(i int, err error) {
	var p *partial
	if errors.As(err, &p) {
		l.parts[i] = p.part
	} else {
		delete(l.parts, i)
	}
}

// landed takes note that a stream is through with a chunk. The caller holds e.mu.
func (e *Engine) landed(s *stream, l *Load, i int) {
	delete(l.flights, i)
	if s.hedge != nil { // of a chunk that was read back meanwhile
		e.abandon(s.hedge)
		s.hedge = nil
	}
}

// patient notes what holds a load up, and ends it when that has lasted too long.
func (e *Engine) patient(l *Load, err error) bool {
	now := time.Now()
	l.progress.Reason = err.Error()
	if l.troubleAt.IsZero() {
		l.troubleAt = now
		e.cfg.Log.Warn("a chunk did not arrive and is fetched again", "model", l.m.Model.String(), "err", err)
		return true
	}
	if d := now.Sub(l.troubleAt); d > e.cfg.Patience {
		e.metrics.chunk(failedOutcome)
		e.endLocked(l, fmt.Errorf("no chunk arrived for %v: %w", d.Round(time.Second), err))
		return false
	}
	return true
}

// released takes note that a job no longer writes to the entry. The caller holds e.mu.
func (e *Engine) released(l *Load) {
	l.inFlight--
	l.progress.InFlight--
	e.closeLocked(l)
}

// end ends a load from outside.
func (e *Engine) end(l *Load, err error) {
	e.mu.Lock()
	defer e.unlock()
	e.endLocked(l, err)
}

// endLocked makes the load's result final, stops its streams and lets its readers go.
func (e *Engine) endLocked(l *Load, err error) {
	if l.over {
		return
	}
	l.over = true
	if err != nil {
		l.err = fmt.Errorf("loading %s: %w", l.m.Model, err)
	}
	l.progress.Ended = time.Now()
	l.cancel(l.err)
	close(l.ended)
	e.metrics.ended(l)
	e.closeLocked(l)
}

// closeLocked notes that the load is over and nothing writes to the entry.
func (e *Engine) closeLocked(l *Load) {
	if l.over && l.inFlight == 0 {
		e.closing = append(e.closing, l)
	}
}

// unlock releases e.mu, and then lays to rest the loads that it can: to unmap an entry can take long.
func (e *Engine) unlock() {
	closing := e.closing
	e.closing = nil
	e.mu.Unlock()
	for _, l := range closing {
		if err := l.entry.Release(); err != nil {
			e.cfg.Log.Warn("an entry could not be released", "entry", l.entry.ID(), "err", err)
		}
		e.mu.Lock()
		e.loads = slices.DeleteFunc(e.loads, func(other *Load) bool { return other == l })
		e.mu.Unlock()
		close(l.done)
		e.logEnd(l)
	}
}

// logEnd writes the one line of a load that has ended.
func (e *Engine) logEnd(l *Load) {
	p := l.Progress()
	level := slog.LevelInfo
	if l.Err() != nil {
		level = slog.LevelWarn
	}
	since := func(t time.Time) time.Duration { // 0 for what did not happen
		if t.IsZero() {
			return 0
		}
		return t.Sub(p.Started)
	}
	e.cfg.Log.Log(context.Background(), level, "load ended", "model", l.m.Model.String(), "err", l.Err(), "source", p.Source, "files", len(l.m.Files), "bytes", p.Size,
		"verified_bytes", p.Verified, "fetched_bytes", p.Fetched, "started", p.Started.UTC().Format(time.RFC3339Nano), "first_chunk", since(p.First), "heads", since(p.Heads),
		"all_verified", since(p.Filled), "elapsed", since(p.Ended), "learnt_chunks", p.Learnt, "refetches", p.Refetches, "stalls", p.Stalls, "stalled", p.Stalled, "reads_that_waited", p.Waits)
}
