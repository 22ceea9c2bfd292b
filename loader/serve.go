package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/manifest"
)

// serving returns the folder in which the model is shown while it loads. The caller has the token.
func (m *model) serving() (string, error) {
	l := m.loader
	dir := filepath.Join(l.cfg.Cache.Dir(), "mnt", m.id)
	if m.fs != nil {
		return dir, nil
	}
	if err := errors.Join(mount.Unmount(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", fmt.Errorf("a folder to mount %s at: %w", m.m.Model, err)
	}
	f, err := modelfs.Mount(dir, m.watched(m.entry), l.cfg.Keeper, l.cfg.Log)
	if err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	if !l.show(m, f, true) {
		return "", errors.Join(errStopped, f.Close())
	}
	return dir, nil
}

// shown is what a modelfs shows.
type shown struct {
	model   *model
	retired chan struct{} // closed when it is neither mounted nor in use
}

// show notes that m is shown by f, unless the loader has stopped, and whether later mounts are to show f.
func (l *Loader) show(m *model, f *modelfs.FS, later bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isStopped() {
		return false
	}
	if later {
		m.fs = f
	}
	m.open++
	l.shown[f] = shown{m, make(chan struct{})}
	l.work.Go(func() { l.retire(m, f) })
	return true
}

// retire waits for the last user of m's mount and adds up what it did.
func (l *Loader) retire(m *model, f *modelfs.FS) {
	select {
	case <-f.Done():
	case <-l.closed:
	}
	l.writeOrder(m)
	s := f.Stats()
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.shown[f].retired)
	delete(l.shown, f)
	m.open--
	l.left(m)
	l.past = add(l.past, s)
}

// parting is how long hide waits for a modelfs that nobody reads to end.
const parting = 100 * time.Millisecond

// hide takes the modelfs away if no lease shows it. Whoever still has it open goes on. The caller
// has the token.
func (m *model) hide() error {
	m.loader.mu.Lock()
	f := m.fs
	if m.streams > 0 || f == nil {
		m.loader.mu.Unlock()
		return nil
	}
	m.fs = nil
	retired := m.loader.shown[f].retired
	m.loader.mu.Unlock()
	if err := f.Unmount(); err != nil {
		return err
	}
	if retired != nil { // without a reader it ends now, and the next caller may want its room
		select {
		case <-retired:
		case <-time.After(parting):
		}
	}
	return os.Remove(f.Dir())
}

// view is what a modelfs sees of a model: one entry and whichever load fills it.
type view struct {
	model *model
	entry *cache.Entry
}

func (v *view) Manifest() *manifest.Manifest    { return v.entry.Manifest() }
func (v *view) Complete(file int) bool          { return v.entry.FileComplete(file) }
func (v *view) Open(file int) (*os.File, error) { return v.entry.Open(file) }

// load returns the load that fills the entry, or nil where there is none.
func (v *view) load() *fetch.Load {
	load := v.model.current()
	if load != nil && load.Entry() != v.entry {
		return nil
	}
	return load
}

// Wait waits on one load after the other: one that failed may have been started again.
func (v *view) Wait(ctx context.Context, file int, off, n int64) error {
	var last *fetch.Load
	var err error
	for !v.have(file, off, n) {
		load := v.load()
		switch {
		case load == nil && v.have(file, off, n):
			return nil // the last chunk came, and the load with it to its end, since the look above
		case load == nil:
			return errors.New(errNobody)
		case load == last:
			return err
		}
		if err = load.Wait(ctx, file, off, n); err == nil || ctx.Err() != nil {
			return err
		}
		last = load
	}
	return nil
}

func (v *view) have(file int, off, n int64) bool {
	size := v.Manifest().ChunkSize
	for c := off / size; c <= (off+n-1)/size; c++ {
		if !v.entry.Have(file, int(c)) {
			return false
		}
	}
	return true
}
