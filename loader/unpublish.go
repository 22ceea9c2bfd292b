package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/mount"
)

// Unpublish takes away what Publish has shown at target, and the folder if Publish made it. Readers
// that are there go on, and with them the load and the entry, until they close what they have open. A target that shows nothing is no error.
func (l *Loader) Unpublish(ctx context.Context, target string) error {
	if err := l.unpublish(ctx, target); err != nil {
		return fmt.Errorf("unpublishing %s: %w", target, remedy(err))
	}
	return nil
}

func (l *Loader) unpublish(ctx context.Context, target string) error {
	if err := mount.CheckTarget(target); err != nil {
		return err
	}
	if err := l.running(ctx); err != nil {
		return err
	}
	unlock, err := l.targets.lock(ctx, target)
	if err != nil {
		return err
	}
	defer unlock()
	le := l.lease(target)
	if le == nil {
		return l.unleased(target)
	}
	if err := le.model.lock(ctx); err != nil {
		return err
	}
	defer le.model.unlock()
	state, err := le.model.look(le)
	if err != nil {
		return err
	}
	if state == foreign {
		return fetch.Fail(fs.ErrExist, "something else is mounted over it: unmount that first")
	}
	if err := l.detach(le); err != nil {
		return err
	}
	l.cfg.Log.Info("unpublished", "model", le.Model, "target", target)
	return nil
}

// unleased takes away a mount of ours whose lease was lost.
func (l *Loader) unleased(target string) error {
	p, err := l.clear(target)
	if err == nil && p != nil {
		err = fetch.Fail(fs.ErrExist, "it is a mount of %s (%s) that is not headstart's: unmount it", p.Source, p.Type)
	}
	return err
}

// detach undoes attach, the visible part first: a process that dies in between leaves a lease
// without a mount, which the next one drops. The caller has the model's token.
func (l *Loader) detach(le *lease) error {
	if err := mount.Unmount(le.Target); err != nil {
		return err
	}
	if le.Created {
		if err := unix.Rmdir(le.Target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.cfg.Log.Warn("the target's folder stays", "target", le.Target, "err", err)
		}
	}
	if err := l.leases.remove(le.Target); err != nil {
		return err
	}
	l.mu.Lock()
	delete(l.byPath, le.Target)
	l.count(le, -1)
	l.mu.Unlock()
	err := le.model.hide()
	l.release(le.model)
	return err
}
