package loader

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/modelfs"
)

// takeOver serves the mounts of the last process that were kept, and returns their models. Where that
// cannot be done their readers get an error, and what a lease shows there is replaced as a dead mount.
func (l *Loader) takeOver(ctx context.Context, entries map[string]*cache.Entry) (taken []*model) {
	for _, k := range l.cfg.Kept {
		o, err := modelfs.NewOrphan(k, l.cfg.Keeper, l.cfg.Log)
		if err != nil {
			l.cfg.Log.Error("a mount could not be taken over: its readers get an error", "err", err)
			continue
		}
		if o.Dead() { // its last user has left meanwhile
			if err := o.End(); err != nil {
				l.cfg.Log.Warn("a connection that has ended is still kept", "dir", o.Dir(), "err", err)
			}
			continue
		}
		m, err := l.inherit(ctx, o, entries[filepath.Base(o.Dir())])
		if err != nil {
			l.cfg.Log.Error("a mount could not be taken over: its readers get an error", "dir", o.Dir(), "err", err)
			continue
		}
		taken = append(taken, m)
	}
	return taken
}

// inherit serves one mount of an entry. When it fails the mount is dead.
func (l *Loader) inherit(ctx context.Context, o *modelfs.Orphan, e *cache.Entry) (*model, error) {
	mounted, err := o.Mounted()
	if e == nil {
		err = errors.Join(err, errors.New("its entry has gone"))
	}
	if err != nil {
		return nil, errors.Join(err, o.End())
	}
	m := l.hold(e.Manifest(), e.Raw())
	defer l.release(m)
	if err := m.ready(ctx); err != nil {
		return nil, errors.Join(err, o.End())
	}
	f, err := o.Serve(m.watched(e))
	if err != nil {
		return nil, err
	}
	if !l.show(m, f, mounted) {
		return nil, errors.Join(errStopped, f.Close())
	}
	l.mu.Lock()
	l.taken++
	l.mu.Unlock()
	l.cfg.Log.Info("a mount is taken over: its readers go on", "model", m.m.Model.String(), "dir", f.Dir(), "waiting_requests", f.Stats().Taken)
	return m, nil
}

// conceal takes away the mounts among those that were taken over that no lease shows: the last process
// died between the two.
func (l *Loader) conceal(ctx context.Context, taken []*model) error {
	for _, m := range taken {
		if err := m.lock(ctx); err != nil {
			return err
		}
		err := m.hide()
		m.unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// takenOver returns the number of mounts that were taken over from the last process.
func (l *Loader) takenOver() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}
