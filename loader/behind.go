package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// CopyStatus is what the disk has of a model in memory.
type CopyStatus struct {
	State    string `json:"state"` // complete, copying, waiting, failed or partial
	Verified int64  `json:"verified_bytes"`
	Reason   string `json:"reason,omitempty"` // why it failed or was stopped
}

// copying is the copying of one model from memory to the disk, behind its readers.
type copying struct {
	load   *fetch.Load // that fills the model; nil if it was there
	cancel context.CancelCauseFunc
	done   chan struct{}

	// The loader's mutex guards what follows.
	begun bool      // its turn has come
	ended time.Time // with err
	err   error     // nil while it runs and after success
}

// CopyAgain is how long a copy that has failed is not begun again: a target may be published anew every
// second.
const CopyAgain = time.Minute

// Outcomes of copies.
const (
	copyComplete = "complete"
	copyFailed   = "failed"
	copyStopped  = "stopped"
)

// What ends the copying of a model, beside the disk.
var (
	errRoom  = errors.New("its room was needed for another model")
	errAgain = errors.New("the model in memory is loaded again")
)

// piece is how much of a chunk is copied at once.
const piece = 1 << 20

// copyBehind sees to it that an entry in memory gets its copy on the disk, if it is to have one, when
// load, if not nil, has filled it. One that has failed begins anew, after a while: who asks again may have
// mended the cause. The caller holds l.mu.
func (l *Loader) copyBehind(e *cache.Entry, load *fetch.Load) {
	if l.cfg.Cache.Behind() == nil || e.Place().Kind() != cache.Memory || l.isStopped() {
		return
	}
	last := l.copies[e.ID()]
	if last != nil {
		if last.load == load && (last.ended.IsZero() || last.err == nil || time.Since(last.ended) < l.cfg.CopyAgain) {
			return
		}
		last.cancel(errAgain)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &copying{load: load, cancel: cancel, done: make(chan struct{})}
	l.copies[e.ID()] = c
	l.work.Go(func() {
		defer close(c.done)
		defer cancel(nil)
		if last != nil {
			<-last.done // two do not write to one copy
		}
		err := l.copyWhole(ctx, e, c)
		l.mu.Lock()
		defer l.mu.Unlock()
		c.ended, c.err = time.Now(), err
	})
}

// copyRest goes on with the copies of an earlier process.
func (l *Loader) copyRest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.cfg.Cache.Entries() {
		if e.Complete() {
			l.copyBehind(e, nil)
		}
	}
}

// endCopy ends the copying of an entry, if it runs, and waits until nothing writes to the copy. What is
// copied stays, for the caller to remove.
func (l *Loader) endCopy(id string, why error) {
	l.mu.Lock()
	c := l.copies[id]
	l.mu.Unlock()
	if c == nil {
		return
	}
	c.cancel(why)
	<-c.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.err == nil {
		c.err = why // for the status
	}
}

// copyWhole waits for the model and for its turn, copies it, and says how that went. What is wrong with
// the disk is no harm to the model in memory.
func (l *Loader) copyWhole(ctx context.Context, e *cache.Entry, c *copying) error {
	if c.load != nil {
		select {
		case <-c.load.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if !e.Complete() {
		return nil // the load has failed, and says so
	}
	select {
	case l.copier <- struct{}{}:
		defer func() { <-l.copier }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	c.begun = true
	l.mu.Unlock()
	if there := l.cfg.Cache.Copy(e); there != nil && there.Durable() {
		return nil
	}
	begin, model := time.Now(), e.Manifest().Model.String()
	n, err := l.copyTo(ctx, e)
	switch {
	case err == nil:
		l.metrics.copies.WithLabelValues(copyComplete).Inc()
		l.cfg.Log.Info("a model in memory is on the disk too", "model", model, "bytes", e.Manifest().Size(), "copied_bytes", n, "elapsed", time.Since(begin))
	case ctx.Err() != nil:
		l.metrics.copies.WithLabelValues(copyStopped).Inc()
		l.cfg.Log.Info("the copying of a model to the disk is stopped", "model", model, "copied_bytes", n, "reason", err)
	default:
		l.metrics.copies.WithLabelValues(copyFailed).Inc()
		l.cfg.Log.Error("a model in memory has no copy on the disk", "model", model, "copied_bytes", n, "err", err)
	}
	return err
}

// copyTo brings the copy of e to the disk, or what it lacks of it, and returns how many bytes that were.
// After an error of the disk nothing of the copy is left; after the end of ctx what is there stays.
func (l *Loader) copyTo(ctx context.Context, e *cache.Entry) (n int64, err error) {
	p := l.cfg.Cache.Behind()
	to, err := l.makeRoom(ctx, p, e.Manifest(), forCopy, func() (*cache.Entry, error) { return l.cfg.Cache.MakeCopy(e) })
	if err != nil {
		return 0, err
	}
	l.cfg.Log.Info("copying a model from memory to the disk", "model", e.Manifest().Model.String(), "bytes", e.Manifest().Size(), "verified_bytes", to.Bytes())
	if !to.Complete() {
		if n, err = l.copyChunks(ctx, e, to); err == nil {
			err = to.Seal()
		}
	}
	if err == nil {
		err = to.Sync(ctx)
	}
	switch {
	case err == nil:
		return n, nil
	case ctx.Err() != nil:
		return n, errors.Join(context.Cause(ctx), to.Release())
	}
	if left := l.cfg.Cache.Remove(to); left != nil {
		err = fmt.Errorf("%w (what there is of the copy stays: %v)", err, left)
	}
	return n, err
}

func (l *Loader) copyChunks(ctx context.Context, e, to *cache.Entry) (n int64, err error) {
	m, buf, took := e.Manifest(), make([]byte, piece), time.Duration(0)
	for i := range m.Files {
		for c := range m.ChunksOf(i) {
			if to.Have(i, c.Index) {
				continue
			}
			if err := l.giveWay(ctx, took); err != nil {
				return n, err
			}
			begin := time.Now()
			if err := to.CopyChunk(e, i, c.Index, buf); errors.As(err, new(*manifest.MismatchError)) {
				return n, fmt.Errorf("what is in memory is not the model any more: %w: run headstart verify %s --socket SOCKET", err, m.Model)
			} else if err != nil {
				return n, err
			}
			took = time.Since(begin)
			n += c.Size
			l.metrics.copied.Add(float64(c.Size))
		}
	}
	return n, nil
}

// giveWay waits as long as the last chunk took, so that a copy has half of the disk and of a core at most, and
// then while loads bring bytes: readers and loads have the machine first. It fails when ctx ends.
func (l *Loader) giveWay(ctx context.Context, took time.Duration) error {
	for rest := took; ctx.Err() == nil && (rest > 0 || l.receiving()); rest = 0 {
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(rest, 100*time.Millisecond)):
		}
	}
	return context.Cause(ctx)
}

// receiving reports whether a load runs that nothing holds up.
func (l *Loader) receiving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.models {
		if m.load == nil {
			continue
		}
		if p := m.load.Progress(); p.Ended.IsZero() && p.Reason == "" {
			return true
		}
	}
	return false
}

// copyStatus describes the copy of an entry in memory; nil where there is none and none is to be.
func (l *Loader) copyStatus(e *cache.Entry) *CopyStatus {
	to := l.cfg.Cache.Copy(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.copies[e.ID()]
	if to == nil && c == nil {
		return nil
	}
	s := &CopyStatus{State: "partial"}
	if to != nil {
		s.Verified = to.Bytes()
	}
	switch {
	case c != nil && c.ended.IsZero() && !c.begun:
		s.State = "waiting"
	case c != nil && c.ended.IsZero():
		s.State = "copying"
	case to != nil && to.Complete():
		s.State = "complete"
	case c != nil && c.err != nil:
		s.State, s.Reason = "failed", c.err.Error()
	case to == nil:
		return nil // it ended with the load
	}
	return s
}
