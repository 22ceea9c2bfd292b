package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/manifest"
)

// Config is what an Engine needs. Source and Log must be set.
type Config struct {
	Source Source
	Log    *slog.Logger

	Streams    int           // chunks that are received at once; default 8
	Stall      time.Duration // a stream without a byte for so long is cut; default 20 s
	Patience   time.Duration // a load whose attempts fail for so long, and none succeeds, fails; default 30 min
	Mismatches int           // a chunk whose bytes are wrong so often fails the load; default 5
}

// Engine fetches the loads of a node. Its methods are safe for concurrent use.
type Engine struct {
	cfg     Config
	metrics *metrics

	wake chan struct{} // one token for each idle stream that may find something in the queue

	mu         sync.Mutex
	loads      []*Load  // that have not ended, oldest first
	demands    []demand // before everything else, in the order of asking
	closing    []*Load  // over and at rest: unlock tells those who wait for that
	stopped    bool
	background sync.WaitGroup // syncs of sealed entries
	ctx        context.Context
	cancel     context.CancelFunc
}

// demand is a chunk that jumps the queue.
type demand struct {
	load  *Load
	chunk int // index into load.status; seal for the load's last act
}

const seal = -1

// New returns an engine. Nothing is fetched before Run.
func New(cfg Config) *Engine {
	if cfg.Streams <= 0 {
		cfg.Streams = 8
	}
	if cfg.Stall <= 0 {
		cfg.Stall = 20 * time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 30 * time.Minute
	}
	if cfg.Mismatches <= 0 {
		cfg.Mismatches = 5
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Engine{cfg: cfg, metrics: newMetrics(), wake: make(chan struct{}, cfg.Streams), ctx: ctx, cancel: cancel}
}

// Collectors returns the engine's metrics.
func (e *Engine) Collectors() []prometheus.Collector { return e.metrics.collectors() }

// Run fetches until ctx ends. Then it ends all loads, waits for its streams and returns nil.
func (e *Engine) Run(ctx context.Context) error {
	var streams sync.WaitGroup
	for range e.cfg.Streams {
		streams.Go(func() { e.stream(ctx) })
	}
	<-ctx.Done()
	e.mu.Lock()
	e.stopped = true
	loads := slices.Clone(e.loads)
	e.mu.Unlock()
	for _, l := range loads {
		e.end(l, fmt.Errorf("the engine was stopped: %w", context.Cause(ctx)))
	}
	e.cancel()
	streams.Wait()
	e.background.Wait()
	return nil
}

// Start queues what the entry lacks. Two loads never fill one entry: while one runs, Start returns it.
func (e *Engine) Start(entry *cache.Entry) *Load {
	l := e.newLoad(entry)
	e.mu.Lock()
	defer e.unlock()
	for _, other := range e.loads {
		if other.entry == entry {
			return other
		}
	}
	e.loads = append(e.loads, l)
	switch {
	case e.stopped:
		e.endLocked(l, errors.New("the engine was stopped"))
	case entry.Complete():
		e.endLocked(l, nil)
	case l.missing == 0:
		e.demands = append(e.demands, demand{l, seal})
		e.signal(1)
	default:
		e.signal(l.missing)
	}
	return l
}

func (e *Engine) newLoad(entry *cache.Entry) *Load {
	m := entry.Manifest()
	l := &Load{
		engine: e, entry: entry, m: m,
		ended: make(chan struct{}), done: make(chan struct{}), files: make([]chan struct{}, len(m.Files)),
		first: make([]int, len(m.Files)), waiting: make(map[int]*arrival), troubles: make(map[int]int), mismatch: make(map[int]int),
		progress: Progress{Started: time.Now()},
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.order, l.heads = plan(m)
	l.status = make([]int8, len(l.order))
	n := 0
	for i := range m.Files {
		l.first[i] = n
		n += len(m.Files[i].Chunks)
		l.files[i] = make(chan struct{})
		if entry.FileComplete(i) {
			close(l.files[i])
		}
	}
	for _, r := range l.order {
		if entry.Have(r.file, r.chunk) {
			l.status[l.first[r.file]+r.chunk] = finished
		} else {
			l.missing++
		}
	}
	return l
}

// signal lets up to n idle streams look into the queue.
func (e *Engine) signal(n int) {
	for range min(n, cap(e.wake)) {
		select {
		case e.wake <- struct{}{}:
		default:
			return // every stream has its token
		}
	}
}

// demand puts a chunk before everything else, once. The caller holds e.mu.
func (e *Engine) demand(l *Load, i int) {
	if l.over || l.status[i] != queued {
		return
	}
	l.status[i] = demanded
	e.demands = append(e.demands, demand{l, i})
	e.signal(1)
}

// take returns the next job and marks it taken.
func (e *Engine) take() (demand, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d, ok := e.pick()
	if !ok {
		return d, false
	}
	if d.chunk != seal {
		d.load.status[d.chunk] = taken
	}
	d.load.inFlight++
	d.load.progress.InFlight++
	return d, true
}

func (e *Engine) pick() (demand, bool) {
	for len(e.demands) > 0 {
		d := e.demands[0]
		e.demands = e.demands[1:]
		if !d.load.over {
			return d, true
		}
	}
	for _, l := range e.loads {
		if i, ok := l.planned(l.heads); ok {
			return demand{l, i}, true
		}
	}
	for _, l := range e.loads {
		if i, ok := l.planned(len(l.order)); ok {
			return demand{l, i}, true
		}
	}
	return demand{}, false
}

// planned returns the next chunk of order[:end] that nobody has taken.
func (l *Load) planned(end int) (int, bool) {
	for l.next < end {
		r := l.order[l.next]
		i := l.first[r.file] + r.chunk
		// A chunk that failed is not left behind: it comes back as a demand.
		l.next++
		if l.status[i] == queued && l.troubles[i] == 0 {
			return i, true
		}
	}
	return 0, false
}

// stream is one of the workers.
func (e *Engine) stream(ctx context.Context) {
	debug.SetPanicOnFault(true) // of this goroutine only: see fill
	var buf []byte
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
		if buf == nil && d.load.entry.Suspect(d.load.locate(d.chunk).file, d.load.locate(d.chunk).chunk) {
			buf = make([]byte, piece)
		}
		err := e.fetch(d.load, d.chunk, buf)
		if err == nil {
			failures = 0
			continue
		}
		// Wrong bytes say nothing about the server's health; anything else may come from too much load.
		var mismatch *manifest.MismatchError
		if d.load.ctx.Err() != nil || errors.As(err, &mismatch) {
			continue
		}
		if failures++; failures > 1 {
			sleep(ctx, backoff(failures-1))
		}
	}
}

// fetch brings one chunk, once. It returns why it failed after the load has been told.
func (e *Engine) fetch(l *Load, i int, buf []byte) error {
	r := l.locate(i)
	if l.entry.Suspect(r.file, r.chunk) {
		if ok, err := l.entry.Recheck(r.file, r.chunk, buf); err != nil {
			err = fmt.Errorf("%w: %w", errMedium, err)
			e.failed(l, i, err)
			return err
		} else if ok {
			e.metrics.rechecked.Inc()
			e.arrived(l, i, 0)
			return nil
		}
	}
	n, err := e.receive(l, r)
	if err != nil {
		e.failed(l, i, err)
		return err
	}
	e.metrics.fetched.Inc()
	e.metrics.bytes.Add(float64(n))
	e.arrived(l, i, n)
	return nil
}

// receive brings a chunk into its place, checks and commits it, and returns its size.
func (e *Engine) receive(l *Load, r ref) (int64, error) {
	f := &l.m.Files[r.file]
	off := int64(r.chunk) * l.m.ChunkSize
	p, err := l.entry.Chunk(r.file, r.chunk)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errMedium, err)
	}
	c := manifest.Chunk{File: r.file, Index: r.chunk, Offset: off, Size: int64(len(p)), CRC32C: f.Chunks[r.chunk]}
	e.metrics.inFlight.Add(float64(len(p)))
	defer e.metrics.inFlight.Sub(float64(len(p)))
	sum, err := receive(l.ctx, e.cfg.Source, l.m.Model.Object(f.Path), off, p, e.cfg.Stall)
	if errors.Is(err, io.EOF) {
		return 0, &manifest.MismatchError{Path: f.Path, Offset: off, Size: c.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: "less"}
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
		return 0, fmt.Errorf("%w: %w", errMedium, err)
	}
	return c.Size, nil
}

// arrived tells the readers of a chunk that it is verified, and seals the entry after the last one.
func (e *Engine) arrived(l *Load, i int, fetched int64) {
	e.mu.Lock()
	l.status[i] = finished
	l.missing--
	l.progress.Fetched += fetched
	l.progress.Reason = ""
	l.troubleAt = time.Time{}
	if l.progress.First.IsZero() {
		l.progress.First = time.Now()
	}
	if a := l.waiting[i]; a != nil {
		delete(l.waiting, i)
		close(a.ch)
	}
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
		e.background.Go(func() {
			if err := l.entry.Sync(e.ctx); err != nil && e.ctx.Err() == nil {
				e.cfg.Log.Warn("a complete entry is not on the disk yet", "entry", l.entry.ID(), "err", err)
			}
		})
	}
	e.endLocked(l, err)
	e.released(l)
}

// failed decides what becomes of a chunk that did not arrive.
func (e *Engine) failed(l *Load, i int, err error) {
	e.mu.Lock()
	defer e.unlock()
	defer e.released(l)
	if l.over {
		return
	}
	l.status[i] = queued
	if final(err) {
		e.metrics.failed.Inc()
		e.endLocked(l, err)
		return
	}
	e.metrics.refetches.WithLabelValues(cause(err)).Inc()
	l.progress.Refetches++
	l.troubles[i]++
	var mismatch *manifest.MismatchError
	if errors.As(err, &mismatch) {
		if l.mismatch[i]++; l.mismatch[i] >= e.cfg.Mismatches {
			e.metrics.failed.Inc()
			e.endLocked(l, fmt.Errorf("wrong bytes %d times: %w", l.mismatch[i], err))
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
		e.metrics.failed.Inc()
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
	e.loads = slices.DeleteFunc(e.loads, func(other *Load) bool { return other == l })
	e.metrics.ended(l)
	e.closeLocked(l)
}

// closeLocked notes that the load is over and nothing writes to the entry.
func (e *Engine) closeLocked(l *Load) {
	if l.over && l.inFlight == 0 {
		e.closing = append(e.closing, l)
	}
}

// unlock releases e.mu, and then closes the loads that came to rest under it: to unmap an entry can
// take long.
func (e *Engine) unlock() {
	closing := e.closing
	e.closing = nil
	e.mu.Unlock()
	for _, l := range closing {
		if err := l.entry.Release(); err != nil {
			e.cfg.Log.Warn("an entry could not be released", "entry", l.entry.ID(), "err", err)
		}
		close(l.done)
		e.logEnd(l)
	}
}

// logEnd writes the one line of a load that has ended.
func (e *Engine) logEnd(l *Load) {
	p := l.Progress()
	level, first := slog.LevelInfo, time.Duration(0)
	if l.Err() != nil {
		level = slog.LevelWarn
	}
	if !p.First.IsZero() {
		first = p.First.Sub(p.Started)
	}
	e.cfg.Log.Log(context.Background(), level, "load ended", "model", l.m.Model.String(), "err", l.Err(), "bytes", p.Size, "verified_bytes", p.Verified,
		"fetched_bytes", p.Fetched, "first_chunk", first, "elapsed", p.Ended.Sub(p.Started), "refetches", p.Refetches, "stalled", p.Stalled)
}
