package loader

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/mount"
)

// recover takes over what an earlier process left. Connections that were kept are served first, for
// their readers wait. Then come the leases: mounts that are intact stay as they are, dead ones are
// replaced, and a lease whose target shows nothing any more is dropped.
func (l *Loader) recover(ctx context.Context) error {
	entries := map[string]*cache.Entry{}
	for _, e := range l.cfg.Cache.Entries() {
		entries[e.ID()] = e
	}
	taken := l.takeOver(ctx, entries)
	if err := l.sweep(taken); err != nil {
		return err
	}
	if err := l.sweepFrames(entries); err != nil {
		return err
	}
	leases, err := l.leases.all(func(file string, err error) {
		l.cfg.Log.Warn("a file that is not a lease is removed", "file", file, "err", err)
	})
	if err != nil {
		return err
	}
	for _, e := range append(l.cfg.Cache.Entries(), l.cfg.Cache.Copies()...) {
		l.cfg.Engine.Sync(e) // an earlier process may have died before it did
	}
	l.copyRest()
	for _, le := range leases {
		if err := l.adopt(ctx, le, entries[le.Entry]); err != nil {
			l.cfg.Log.Error("a lease could not be taken over", "target", le.Target, "model", le.Model, "err", err)
		}
	}
	return l.conceal(ctx, taken)
}

// sweep empties the folder of mounts, but for those that were taken over: the rest died with their
// process.
func (l *Loader) sweep(taken []*model) error {
	dir := filepath.Join(l.cfg.Cache.Dir(), "mnt")
	dead, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range dead {
		if slices.ContainsFunc(taken, func(m *model) bool { return m.id == d.Name() && m.fs != nil }) {
			continue
		}
		path := filepath.Join(dir, d.Name())
		if err := errors.Join(mount.Unmount(path), os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over one lease.
func (l *Loader) adopt(ctx context.Context, le *lease, e *cache.Entry) error {
	if e == nil {
		return l.drop(le, "its entry has gone")
	}
	m := l.hold(e.Manifest(), e.Raw())
	defer l.release(m)
	le.model = m
	if err := m.ready(ctx); err != nil {
		return err
	}
	state, err := m.look(le)
	if err != nil {
		return err
	}
	switch state {
	case missing:
		return l.drop(le, "its target shows nothing any more")
	case foreign:
		return l.drop(le, "its target shows something else")
	}
	l.mu.Lock()
	l.byPath[le.Target] = le
	m.users++
	l.count(le, 1)
	l.mu.Unlock()
	if state == intact {
		return nil
	}
	l.cfg.Log.Info("a mount whose process has died is replaced", "target", le.Target, "model", le.Model)
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.unlock()
	_, err = l.reattach(le)
	return err
}

// drop forgets a lease that could not be taken over, and takes away what is left of it.
func (l *Loader) drop(le *lease, why string) error {
	l.cfg.Log.Warn("a lease is dropped", "target", le.Target, "model", le.Model, "reason", why)
	p, err := l.clear(le.Target)
	if err == nil && p == nil && le.Created {
		unix.Rmdir(le.Target) // stays if somebody uses it
	}
	return errors.Join(err, l.leases.remove(le.Target))
}
