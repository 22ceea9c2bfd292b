package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/manifest"
)

// Published says what is shown at a target.
type Published struct {
	Target   string `json:"target"`
	Model    string `json:"model"` // repo@commit
	Sum      string `json:"sum"`   // of the manifest, for a pin
	Mode     Mode   `json:"mode"`
	Layout   Layout `json:"layout"`
	Size     int64  `json:"bytes"`
	Verified int64  `json:"verified_bytes"` // how much of it this node has
}

// Publish is PublishAs in the layout Plain.
func (l *Loader) Publish(ctx context.Context, ref manifest.Reference, target string) (Published, error) {
	return l.PublishAs(ctx, ref, target, Plain)
}

// PublishAs shows a model at target and leases it. It returns when the files are visible, not when
// they are there: reads wait for their bytes. Publishing the same model there again is no change,
// but replaces a mount whose process has died.
//
// Target is absolute, and missing or an empty folder. The error wraps fs.ErrExist where target is
// in use, fs.ErrNotExist where the model is not staged, ENOSPC where the cache has no room.
func (l *Loader) PublishAs(ctx context.Context, ref manifest.Reference, target string, layout Layout) (Published, error) {
	begin := time.Now()
	p, err := l.publish(ctx, ref, target, layout)
	l.metrics.published(p.Mode, err, time.Since(begin))
	if err != nil {
		return Published{}, fmt.Errorf("publishing %s: %w", ref, remedy(err))
	}
	l.cfg.Log.Info("published", "model", p.Model, "target", target, "mode", p.Mode, "layout", p.Layout, "bytes", p.Size, "verified_bytes", p.Verified, "elapsed", time.Since(begin))
	return p, nil
}

// remedy says what to do where nothing can be mounted.
func remedy(err error) error {
	if errors.Is(err, mount.ErrUnsupported) {
		return fetch.Fail(mount.ErrUnsupported, "%v: run the node as root with /dev/fuse, or use: headstart fetch MODEL DIR", err)
	}
	return err
}

func (l *Loader) publish(ctx context.Context, ref manifest.Reference, target string, layout Layout) (Published, error) {
	if err := mount.CheckTarget(target); err != nil {
		return Published{}, err
	}
	if dir := l.cfg.Cache.Dir(); target == dir || strings.HasPrefix(target, dir+"/") {
		return Published{}, fetch.Fail(fs.ErrExist, "target %s lies in the node's own cache directory: give one outside of %s", target, dir)
	}
	if err := modelfs.Supported(); err != nil {
		return Published{}, err
	}
	if err := l.running(ctx); err != nil {
		return Published{}, err
	}
	unlock, err := l.targets.lock(ctx, target)
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	le := l.lease(target)
	if le != nil && le.Layout != layout {
		return Published{}, fetch.Fail(fs.ErrExist, "target %s shows %s in the layout %s: unpublish it first", target, le.Model, le.Layout)
	}
	if le != nil && le.Ref == ref.String() {
		return l.again(ctx, le)
	}
	mf, raw, err := l.resolve(ctx, ref)
	if err != nil {
		return Published{}, err
	}
	m := l.hold(mf, raw)
	defer l.release(m)
	if le != nil && le.model == m {
		return l.again(ctx, le)
	}
	if le != nil {
		return Published{}, fetch.Fail(fs.ErrExist, "target %s shows %s: unpublish it first", target, le.Model)
	}
	return l.first(ctx, m, ref, target, layout)
}

// lease returns the lease of a target, or nil.
func (l *Loader) lease(target string) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byPath[target]
}

// first publishes at a target that has no lease. What it has made when it fails is taken back.
func (l *Loader) first(ctx context.Context, m *model, ref manifest.Reference, target string, layout Layout) (_ Published, err error) {
	le := &lease{Target: target, Ref: ref.String(), Model: m.m.Model.String(), Entry: m.id, Layout: layout, Since: time.Now().UTC().Truncate(time.Second), model: m}
	if _, err := l.clear(target); err != nil {
		return Published{}, err
	}
	if le.Created, err = mount.Prepare(target); err != nil {
		return Published{}, err
	}
	defer func() {
		if err != nil && le.Created {
			unix.Rmdir(target)
		}
	}()
	if err := m.lock(ctx); err != nil {
		return Published{}, err
	}
	defer m.unlock()
	if err := m.readyLocked(); err != nil {
		return Published{}, err
	}
	if err := l.attach(le); err != nil {
		return Published{}, err
	}
	return m.published(le), nil
}

// published describes what a lease shows.
func (m *model) published(le *lease) Published {
	return Published{Target: le.Target, Model: le.Model, Sum: m.entry.Sum().String(), Mode: le.Mode, Layout: le.Layout, Size: m.m.Size(), Verified: m.entry.Bytes()}
}

// again makes sure that a target shows what its lease says.
func (l *Loader) again(ctx context.Context, le *lease) (Published, error) {
	m := le.model
	if err := m.lock(ctx); err != nil {
		return Published{}, err
	}
	defer m.unlock()
	if err := m.readyLocked(); err != nil {
		return Published{}, err
	}
	switch state, err := m.look(le); {
	case err != nil:
		return Published{}, err
	case state == intact:
		return m.published(le), nil
	case state == foreign:
		return Published{}, fetch.Fail(fs.ErrExist, "target %s is leased to %s, but something else is mounted over it: unmount that first", le.Target, le.Model)
	}
	le, err := l.reattach(le)
	if err != nil {
		return Published{}, err
	}
	return m.published(le), nil
}

// attach writes the lease down and then makes it visible. The caller has the model's token.
func (l *Loader) attach(le *lease) error {
	m := le.model
	source, err := m.source(le)
	if err == nil {
		err = l.leases.save(le)
	}
	if err == nil {
		if err = le.bind(source); err != nil {
			err = errors.Join(err, l.leases.remove(le.Target))
		}
	}
	if err != nil {
		return errors.Join(err, m.hide())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byPath[le.Target] = le
	m.users++
	l.count(le, 1)
	return nil
}

// count notes that a lease shows, or no longer shows, the modelfs. The caller holds l.mu.
func (l *Loader) count(le *lease, n int) {
	if le.Mode == Stream {
		le.model.streams += n
	}
}

// source returns what a new mount is to show, and notes its mode in the lease.
func (m *model) source(le *lease) (string, error) {
	if m.entry.Complete() {
		le.Mode = Bind
		return m.entry.Dir(), nil
	}
	le.Mode = Stream
	return m.serving()
}

// reattach mounts anew at a target whose mount has died or gone, and returns the lease as it is then.
// The caller has the model's token.
func (l *Loader) reattach(old *lease) (*lease, error) {
	le := *old // others look at the old one meanwhile
	m := le.model
	if err := mount.Unmount(le.Target); err != nil {
		return nil, err
	}
	if _, err := mount.Prepare(le.Target); err != nil {
		return nil, err
	}
	source, err := m.source(&le)
	if err == nil {
		err = l.leases.save(&le)
	}
	if err == nil {
		err = le.bind(source)
	}
	l.mu.Lock()
	l.byPath[le.Target] = &le
	l.count(old, -1)
	l.count(&le, 1)
	l.mu.Unlock()
	return &le, errors.Join(err, m.hide())
}
