package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/cache"
)

// Config is what an Engine needs. Source and Log must be set.
type Config struct {
	Source Source
	Log    *slog.Logger
	Name   string // of the source, for metrics and status; default "bucket"

	Streams    int           // chunks that are received at once; default: 8, and then as many as bring more bytes, up to MaxStreams
	MaxStreams int           // default 64; nothing if Streams is given
	InFlight   int64         // bytes of the chunks that are received at once, but for one chunk that is larger; default 1 GiB
	Stall      time.Duration // a stream without a byte for so long is cut; default 20 s
	Patience   time.Duration // a load whose attempts fail for so long, and none succeeds, fails; default 30 min
	Mismatches int           // a chunk whose bytes are wrong so often fails the load; default 5
}

// Engine fetches the loads of a node. Its methods are safe for concurrent use.
type Engine struct {
	cfg      Config
	metrics  *metrics
	pace     *pace
	received atomic.Int64 // bytes from the source, verified or not

	wake  chan struct{} // one token for each idle stream that may find something in the queue
	begun chan struct{} // a load has begun: the tuner looks

	mu         sync.Mutex
	loads      []*Load  // that are not at rest, oldest first
	demands    []demand // before everything else, in the order of asking
	closing    []*Load  // over, and nothing writes any more: unlock lays them to rest
	stopped    bool
	width      int            // streams that may have a job
	busy       int            // … that have one
	bytes      int64          // of the chunks of their jobs
	taken      int            // chunks that were ever begun
	hedged     int            // … and asked for a second time
	hedging    int            // second requests on their way
	throttled  int            // answers that said "too much" since the tuner looked
	background sync.WaitGroup // syncs of sealed entries, second requests
	ctx        context.Context
	cancel     context.CancelFunc
}

// demand is a chunk that jumps the queue.
type demand struct {
	load  *Load
	chunk int       // index into load.status; seal for the load's last act
	since time.Time // when it was demanded; zero where its turn has come
}

const seal = -1

// New returns an engine. Nothing is fetched before Run.
func New(cfg Config) *Engine {
	switch {
	case cfg.Streams > 0:
		cfg.MaxStreams = cfg.Streams
	case cfg.MaxStreams <= 0:
		cfg.MaxStreams = 64
	}
	if cfg.Streams <= 0 {
		cfg.Streams = min(8, cfg.MaxStreams)
	}
	if cfg.InFlight <= 0 {
		cfg.InFlight = 1 << 30
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
	if cfg.Name == "" {
		cfg.Name = "bucket"
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Engine{
		cfg: cfg, metrics: newMetrics(cfg.Name), pace: new(pace), width: cfg.Streams,
		wake: make(chan struct{}, cfg.MaxStreams), begun: make(chan struct{}, 1), ctx: ctx, cancel: cancel,
	}
}

// Collectors returns the engine's metrics.
func (e *Engine) Collectors() []prometheus.Collector { return e.metrics.collectors() }

// Run fetches until ctx ends. Then it ends all loads, waits for its streams and returns nil.
func (e *Engine) Run(ctx context.Context) error {
	var streams sync.WaitGroup
	e.grow(ctx, &streams, e.cfg.Streams)
	if e.cfg.MaxStreams > e.cfg.Streams {
		streams.Go(func() { e.tune(ctx, &streams) })
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

// grow starts n more streams.
func (e *Engine) grow(ctx context.Context, streams *sync.WaitGroup, n int) {
	for range n {
		s := &stream{engine: e, guard: newGuard(e.cfg.Stall, e.pace, &e.received)}
		streams.Go(func() { s.run(ctx) })
	}
}

// Start queues what the entry lacks. Two loads never fill one entry: while one runs, Start returns it;
// while one that was cancelled still writes, Start waits for that to end.
func (e *Engine) Start(entry *cache.Entry) *Load {
	e.mu.Lock()
	defer e.unlock()
	for {
		old := e.loadOf(entry)
		if old == nil {
			break
		}
		if !old.over {
			return old
		}
		e.unlock()
		<-old.done
		e.mu.Lock()
	}
	l := e.newLoad(entry)
	e.loads = append(e.loads, l)
	e.metrics.began(l)
	select {
	case e.begun <- struct{}{}:
	default:
	}
	switch {
	case e.stopped:
		e.endLocked(l, errors.New("the engine was stopped"))
	case entry.Complete():
		e.endLocked(l, nil)
	case l.missing == 0:
		e.demands = append(e.demands, demand{load: l, chunk: seal})
		e.signal(1)
	default:
		e.signal(l.missing)
	}
	return l
}

// loadOf returns the load of an entry that is not at rest, or nil.
func (e *Engine) loadOf(entry *cache.Entry) *Load {
	for _, l := range e.loads {
		if l.entry == entry {
			return l
		}
	}
	return nil
}

func (e *Engine) newLoad(entry *cache.Entry) *Load {
	m := entry.Manifest()
	l := &Load{
		engine: e, entry: entry, m: m,
		ended: make(chan struct{}), done: make(chan struct{}), files: make([]chan struct{}, len(m.Files)),
		first: make([]int, len(m.Files)), keys: make([]string, len(m.Files)), waiting: make(map[int]*arrival),
		troubles: make(map[int]int), mismatch: make(map[int]int), flights: make(map[int]*stream), parts: make(map[int]part),
		progress: Progress{Started: time.Now(), Source: e.cfg.Name},
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.order, l.heads = plan(m)
	l.status = make([]int8, len(l.order))
	n := 0
	for i := range m.Files {
		l.first[i], l.keys[i] = n, m.Model.Object(m.Files[i].Path)
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
	if l.headsMissing = l.heads - l.there(l.heads); l.headsMissing == 0 {
		l.progress.Heads = l.progress.Started
	}
	return l
}
