package loader

import (
	"context"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

// model is one model on this node: its entry, its load and who wants it.
type model struct {
	loader *Loader
	id     string // of the entry
	m      *manifest.Manifest
	raw    []byte
	making chan struct{} // holds one token while the entry or the mount is made or removed

	// The loader's mutex guards what follows.
	users    int // leases, and calls that want it to stay
	streams  int // leases that show the modelfs
	open     int // modelfs that are mounted or that somebody still has open
	entry    *cache.Entry
	load     *fetch.Load // the latest, also when it has ended; nil if the entry was complete
	fs       *modelfs.FS
	medium   string          // why the entry lies on its medium; "" if an earlier process chose
	grace    *grace          // set while nobody wants a load that is running
	recorder *order.Recorder // what readers of its modelfs demand, nil before there is one
	written  int             // how much of that was written down; the mutex of orders guards it
}

// grace is the time that a load has left when nobody wants it.
type grace struct{ timer *time.Timer }

// hold returns the model of a manifest, which stays, with its load, until release.
func (l *Loader) hold(mf *manifest.Manifest, raw []byte) *model {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.model(mf, raw)
	l.keep(m)
	m.users++
	return m
}

// model finds or makes a model. The caller holds l.mu.
func (l *Loader) model(mf *manifest.Manifest, raw []byte) *model {
	id := cache.ID(mf.Model, manifest.Sum(raw))
	m := l.models[id]
	if m == nil {
		m = &model{loader: l, id: id, m: mf, raw: raw, making: make(chan struct{}, 1)}
		l.models[id] = m
	}
	return m
}

// keep stops the clock that would end m's load. The caller holds l.mu.
func (l *Loader) keep(m *model) {
	if m.grace != nil && m.grace.timer.Stop() {
		l.work.Done()
	}
	m.grace = nil
}

// release gives back what hold took. The load that nobody wants any more goes on for a while.
func (l *Loader) release(m *model) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.users--
	l.left(m)
}

// wanted reports whether m's entry and load are to stay. The caller holds the loader's mutex.
func (m *model) wanted() bool { return m.users > 0 || m.open > 0 }

// left looks whether somebody who left m was the last one. The caller holds l.mu.
func (l *Loader) left(m *model) {
	if m.wanted() {
		return
	}
	if m.entry != nil {
		l.touch(m.entry)
	}
	l.forget(m)
	if !l.isStopped() && m.load != nil && m.load.Progress().Ended.IsZero() {
		g := &grace{}
		l.work.Add(1)
		g.timer = time.AfterFunc(l.cfg.Grace, func() {
			defer l.work.Done()
			l.expire(m, g)
		})
		m.grace = g
	}
}

// forget drops a model that has no entry and that nobody wants. The caller holds l.mu.
func (l *Loader) forget(m *model) {
	if !m.wanted() && m.entry == nil && l.models[m.id] == m {
		delete(l.models, m.id)
	}
}

// expire cancels the load that nobody wanted for long enough. It has the model's token meanwhile:
// who wants the load now either is seen here or finds that it has ended.
func (l *Loader) expire(m *model, g *grace) {
	m.making <- struct{}{}
	defer m.unlock()
	l.mu.Lock()
	unwanted, load := m.grace == g && !m.wanted(), m.load
	l.mu.Unlock()
	if unwanted {
		l.cfg.Log.Info("a load is cancelled: nobody wants it any more", "model", m.m.Model.String())
		load.Cancel()
	}
}

// lock takes the model's token.
func (m *model) lock(ctx context.Context) error {
	select {
	case m.making <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *model) unlock() { <-m.making }

// ready makes sure that there is an entry and that what it lacks is being fetched. The caller holds
// the model. A load that has failed begins anew: who asks again may have mended the cause.
func (m *model) ready(ctx context.Context) error {
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.unlock()
	return m.readyLocked()
}

// readyLocked is ready for a caller that has the model's token.
func (m *model) readyLocked() error {
	l := m.loader
	l.mu.Lock()
	entry, load, begun := m.entry, m.load, false
	l.mu.Unlock()
	if entry == nil {
		var err error
		if entry, err = l.makeEntry(m); err != nil {
			return err
		}
	}
	if !entry.Complete() && (load == nil || load.Entry() != entry || !load.Progress().Ended.IsZero()) {
		if load != nil {
			<-load.Done() // its last writer: the engine has ended it already
		}
		load = l.cfg.Engine.Start(entry)
		begun = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if begun {
		l.teach(m, load)
	}
	m.entry, m.load = entry, load
	l.copyBehind(entry, load)
	return nil
}

// current returns the load that runs, or nil where the entry is complete.
func (m *model) current() *fetch.Load {
	m.loader.mu.Lock()
	defer m.loader.mu.Unlock()
	if m.entry != nil && m.entry.Complete() {
		return nil
	}
	return m.load
}
