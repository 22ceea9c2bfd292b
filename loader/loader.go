// Package loader keeps a node's models: it loads each one once, however many ask for it, and makes
// it visible where pods look for it.
//
// A model on a node is an entry of the cache. Publishing a model whose entry is complete is a
// read-only bind mount of the entry's folder: nothing stands between a reader and its files.
// Publishing one that still loads is a bind mount of a modelfs, one for the entry, which shows all
// files at once and lets reads wait for their bytes. What is published is a lease: it is written
// down before it is visible, it keeps its entry from being evicted and its load going, and a later
// process takes it over.
//
// When the process dies, complete files and bind mounts go on. Reads that wait, and files that were
// opened before they were complete, go on too if somebody keeps the connections of the modelfs for the
// next process (package keeper); else they end with an error and the next process replaces the mount.
//
// Below the cache's directory the loader has three folders of its own:
//
//	leases/<hash of the target>.json    one for each target
//	mnt/<entry>/                        where an entry's modelfs is mounted
//	hf/<entry>/                         what is around an entry's files in the layout HF
//	orders/<entry>                      the order in which its chunks were demanded; it stays when the entry goes
package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/manifest"
)

// Grace is how long a load goes on after the last one who wanted it has left: a pod that is
// restarted comes back within seconds.
const Grace = 30 * time.Second

// Config is what a Loader needs.
type Config struct {
	Cache  *cache.Cache
	Engine *fetch.Engine // somebody else calls its Run
	Source fetch.Source  // the engine's
	Log    *slog.Logger
	Grace  time.Duration // default Grace
	// Drain is how long Run, when its context ends, lets loads go on whose mounts this process serves:
	// their readers would get errors. 0 ends them at once. The engine has to run longer than that.
	Drain time.Duration
	// Keeper, if not nil, keeps the connections of mounts for the next process, and Kept is what it has
	// from the last one. Run goes on serving those, so that their readers see no end.
	Keeper modelfs.Keeper
	Kept   []modelfs.Kept
	// CopyAgain is how long a copy to the disk that has failed is not begun again; default CopyAgain.
	CopyAgain time.Duration
	// Restarts is how often this process's forerunners died and were replaced, for status and metrics.
	Restarts int
}

// Loader publishes models. Its methods are safe for concurrent use.
type Loader struct {
	cfg       Config
	leases    store
	orders    *orders
	targets   locks         // by target: one publish or unpublish at a time
	room      chan struct{} // holds the token of who evicts; a model's token is taken before it
	copier    chan struct{} // holds the token of the one model that is copied to the disk
	recovered chan struct{} // closed when Run has taken over the earlier process's leases
	stopped   chan struct{} // closed when Run ends
	closed    chan struct{} // closed when all mounts are closed, or cannot be
	work      sync.WaitGroup
	metrics   *metrics

	mu     sync.Mutex
	models map[string]*model     // by entry
	byPath map[string]*lease     // by target
	shown  map[*modelfs.FS]shown // mounted or still in use
	past   modelfs.Stats         // of those that are neither any more
	taken  int                   // mounts that were taken over from the last process
	copies map[string]*copying   // by entry, those that have ended too
}

// New returns a loader. Nothing is published before Run has taken over what an earlier process left.
func New(cfg Config) *Loader {
	if cfg.Grace <= 0 {
		cfg.Grace = Grace
	}
	if cfg.CopyAgain <= 0 {
		cfg.CopyAgain = CopyAgain
	}
	l := &Loader{cfg: cfg, leases: store{dir: cfg.Cache.Dir()}, orders: &orders{dir: filepath.Join(cfg.Cache.Dir(), "orders")}, recovered: make(chan struct{}), stopped: make(chan struct{}), closed: make(chan struct{}),
		room: make(chan struct{}, 1), copier: make(chan struct{}, 1),
		models: map[string]*model{}, byPath: map[string]*lease{}, shown: map[*modelfs.FS]shown{}, copies: map[string]*copying{}}
	l.metrics = newMetrics(l)
	return l
}

// errStopped is the answer to whoever comes when Run has ended.
var errStopped = errors.New("the node is stopping: try again when it runs")

// Run takes over the leases of an earlier process and works until ctx ends. Then it ends what is
// served by this process; plain bind mounts and all leases stay, for the next one.
func (l *Loader) Run(ctx context.Context) error {
	if err := l.recover(ctx); err != nil {
		return fmt.Errorf("taking over leases: %w", err)
	}
	close(l.recovered)
	l.writeOrders(ctx)
	return l.stop()
}

// stop ends the mounts that this process serves. Their readers could not be answered any more.
func (l *Loader) stop() error {
	l.mu.Lock()
	close(l.stopped)
	serving := make([]*modelfs.FS, 0, len(l.shown))
	for f := range l.shown {
		serving = append(serving, f)
	}
	for _, c := range l.copies {
		c.cancel(errStopped)
	}
	var loads []*fetch.Load
	for _, m := range l.models {
		l.keep(m)
		if m.open > 0 && m.load != nil {
			loads = append(loads, m.load)
		}
	}
	l.mu.Unlock()
	l.drain(loads)
	var errs []error
	for _, f := range serving {
		errs = append(errs, f.Close())
		os.Remove(f.Dir()) // what stays is swept by the next process
	}
	close(l.closed)
	l.work.Wait()
	return errors.Join(errs...)
}

// drain waits for loads that readers may need, for a while.
func (l *Loader) drain(loads []*fetch.Load) {
	enough := time.NewTimer(l.cfg.Drain)
	defer enough.Stop()
	late := l.cfg.Drain <= 0
	for _, load := range loads {
		if !late {
			select {
			case <-load.Done():
			case <-enough.C:
				late = true
			}
		}
		if p := load.Progress(); p.Ended.IsZero() {
			l.cfg.Log.Warn("a load is cut off: reads of its mounts fail", "model", load.Entry().Manifest().Model.String(), "waiting_readers", p.Waiting)
		}
	}
}

// running waits until leases can be made, and fails when they cannot be made any more.
func (l *Loader) running(ctx context.Context) error {
	select {
	case <-l.recovered:
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.isStopped() {
		return errStopped
	}
	return nil
}

func (l *Loader) isStopped() bool {
	select {
	case <-l.stopped:
		return true
	default:
		return false
	}
}

// resolve finds the manifest that ref means. What names its bytes exactly is found on this node,
// without the bucket.
func (l *Loader) resolve(ctx context.Context, ref manifest.Reference) (*manifest.Manifest, []byte, error) {
	for _, e := range l.cfg.Cache.Entries() {
		if e.Manifest().Model.Repo == ref.Repo && (ref.Pin == e.Sum() || ref.Revision == e.Manifest().Model.Commit) {
			return e.Manifest(), e.Raw(), nil
		}
	}
	return fetch.Resolve(ctx, l.cfg.Source, ref)
}

// Wait starts or joins the load of a model and returns when this node has all of it. Progress, if
// not nil, is called from one goroutine: at the start, a few times a second, and at the end.
func (l *Loader) Wait(ctx context.Context, ref manifest.Reference, progress func(Progress)) error {
	if err := l.running(ctx); err != nil {
		return err
	}
	mf, raw, err := l.resolve(ctx, ref)
	if err != nil {
		return err
	}
	m := l.hold(mf, raw)
	defer l.release(m)
	if err := m.ready(ctx); err != nil {
		return err
	}
	return l.follow(ctx, m, progress)
}

// follow waits for m's load.
func (l *Loader) follow(ctx context.Context, m *model, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	progress(m.progress())
	defer func() { progress(m.progress()) }()
	load := m.current()
	if load == nil {
		return nil
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-load.Done():
			return load.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			progress(m.progress())
		}
	}
}

// Serving returns the number of mounts that this process still serves, those included that are
// unpublished and that somebody has open.
func (l *Loader) Serving() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.shown)
}
