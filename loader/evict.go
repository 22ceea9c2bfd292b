package loader

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// makeIn makes the entry of m in a place, with all of its room. Where there is too little, entries there
// that nobody leases go, the one that was leased least recently first; none goes where all of them would
// not make enough. The caller has m's token.
func (l *Loader) makeIn(p *cache.Place, m *model) (*cache.Entry, error) {
	return l.makeRoom(context.Background(), p, m.m, forLoad, func() (*cache.Entry, error) { return l.cfg.Cache.EntryAt(p, m.m, m.raw) })
}

// purpose is what room is made for.
type purpose int

const (
	forLoad purpose = iota
	forCopy         // the copies of models that somebody wants stay
)

// makeRoom calls attempt, which makes what mf needs in p, and evicts until there is room for it.
func (l *Loader) makeRoom(ctx context.Context, p *cache.Place, mf *manifest.Manifest, to purpose, attempt func() (*cache.Entry, error)) (*cache.Entry, error) {
	if e, err := attempt(); !errors.Is(err, syscall.ENOSPC) {
		return e, err
	}
	// One at a time: what one is removing the others would count neither as room nor as what could go.
	select {
	case l.room <- struct{}{}:
		defer func() { <-l.room }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		e, err := attempt()
		if !errors.Is(err, syscall.ENOSPC) {
			return e, err
		}
		if err := l.enough(p, mf, to); err != nil {
			return nil, err
		}
		evicted, evictErr := l.evict(p, to)
		if evictErr != nil {
			return nil, errors.Join(err, evictErr)
		}
		if !evicted {
			return nil, fetch.Fail(err, "%s needs %d bytes in %s, there is too little room and nothing can be evicted, %d bytes are leased or still read: %s, or unpublish another model",
				mf.Model, mf.Size(), p.Dir(), l.leased(p), larger(p))
		}
	}
}

// enough fails where mf would not fit if all that may go had gone.
func (l *Loader) enough(p *cache.Place, mf *manifest.Manifest, to purpose) error {
	room, err := p.Room()
	if err != nil {
		return err
	}
	need, idle := blocks(mf, room.Block), l.unwanted(p, room.Block, to)
	if need <= min(room.Available+idle, room.Size) {
		return nil
	}
	bound := ""
	if room.Bound != "" {
		bound = " by " + room.Bound
	}
	return fetch.Fail(syscall.ENOSPC, "%s needs %d bytes, but %s has %d available%s, %d more could be evicted, and %d bytes are leased or still read: %s, or unpublish another model",
		mf.Model, need, p.Dir(), room.Available, bound, idle, l.leased(p), larger(p))
}

// larger is what to do about a place that is too small.
func larger(p *cache.Place) string {
	if p.Kind() == cache.Memory {
		return "give it more memory"
	}
	return "use a larger disk"
}

// unwanted returns the bytes that the entries of a place take that could be evicted.
func (l *Loader) unwanted(p *cache.Place, block uint64, to purpose) (n uint64) {
	for _, e := range l.entries(p) {
		if !l.stays(e, to) {
			n += blocks(e.Manifest(), block)
		}
	}
	return n
}

// stays reports whether an entry or a copy may not be evicted. Nobody reads a copy: it may always go to
// make room for a load, which else would fail.
func (l *Loader) stays(e *cache.Entry, to purpose) bool {
	if to == forLoad && l.cfg.Cache.IsCopy(e) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.models[e.ID()]
	return m != nil && m.wanted()
}

// blocks returns the bytes that a model's files take on a medium with blocks of that size.
func blocks(m *manifest.Manifest, block uint64) (n uint64) {
	for i := range m.Files {
		n += (uint64(m.Files[i].Size) + block - 1) / block * block
	}
	return n
}

// entries returns the entries and the copies of a place.
func (l *Loader) entries(p *cache.Place) []*cache.Entry {
	return slices.DeleteFunc(append(l.cfg.Cache.Entries(), l.cfg.Cache.Copies()...), func(e *cache.Entry) bool { return e.Place() != p })
}

// evict removes one entry or copy of a place and reports whether there was one to remove. It has the token
// of room: meanwhile no copy becomes an entry.
func (l *Loader) evict(p *cache.Place, to purpose) (bool, error) {
	for _, e := range l.idle(p) {
		if l.stays(e, to) {
			continue
		}
		if l.cfg.Cache.IsCopy(e) {
			l.endCopy(e.ID(), errRoom)
			if !l.cfg.Cache.IsCopy(e) {
				return true, nil // it failed meanwhile, and went
			}
			if err := l.cfg.Cache.Remove(e); err != nil {
				return false, err
			}
			l.evicted(e)
			return true, nil
		}
		m, load := l.claim(e)
		if m == nil {
			continue
		}
		defer m.unlock()
		if load != nil {
			load.Cancel()
		}
		l.endCopy(m.id, errRoom)
		left := l.cfg.Cache.Copy(e)
		if err := l.cfg.Cache.Remove(e); err != nil {
			return false, err
		}
		if err := os.RemoveAll(l.frame(m.id)); err != nil {
			return false, err
		}
		l.mu.Lock()
		m.entry, m.load = left, nil
		if left != nil {
			m.medium = "its place in memory was needed for another model, and the disk had a copy"
		}
		delete(l.copies, m.id)
		l.forget(m)
		l.mu.Unlock()
		l.evicted(e)
		return true, nil
	}
	return false, nil
}

// evicted counts an entry or a copy that has gone.
func (l *Loader) evicted(e *cache.Entry) {
	size, kind := e.Manifest().Size(), e.Place().Kind()
	l.metrics.evictions.WithLabelValues(string(kind)).Inc()
	l.metrics.evicted.WithLabelValues(string(kind)).Add(float64(size))
	l.cfg.Log.Info("evicted", "model", e.Manifest().Model.String(), "medium", kind, "bytes", size)
}

// idle returns the entries of a place that nobody may want, in the order in which they are to go:
// complete ones first, for an unfinished one may be the next to be asked for.
func (l *Loader) idle(p *cache.Place) []*cache.Entry {
	entries := l.entries(p)
	used := map[*cache.Entry]time.Time{}
	for _, e := range entries {
		used[e] = touched(e)
	}
	slices.SortStableFunc(entries, func(a, b *cache.Entry) int {
		if a.Complete() != b.Complete() {
			if a.Complete() {
				return -1
			}
			return 1
		}
		return used[a].Compare(used[b])
	})
	return entries
}

// claim takes the token of e's model if nobody wants it, and returns its load. Who comes now waits
// for the token, and finds that there is no entry.
func (l *Loader) claim(e *cache.Entry) (*model, *fetch.Load) {
	for {
		l.mu.Lock()
		m := l.model(e.Manifest(), e.Raw())
		if m.wanted() {
			l.mu.Unlock()
			return nil, nil
		}
		select {
		case m.making <- struct{}{}:
			defer l.mu.Unlock()
			l.keep(m)
			return m, m.load
		default: // its last user is leaving, or the end of its grace has come; or somebody comes and wants it
			l.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
	}
}

// leased returns the bytes of the entries of a place that are wanted.
func (l *Loader) leased(p *cache.Place) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, m := range l.models {
		if m.wanted() && m.entry != nil && m.entry.Place() == p {
			n += m.m.Size()
		}
	}
	return n
}

// touch notes, on the medium, that an entry, and its copy, was leased until now. It is later than every other
// one of its place, also where the clock was set back since they were: the order counts, not the time.
func (l *Loader) touch(e *cache.Entry) {
	if c := l.cfg.Cache.Copy(e); c != nil {
		l.touch(c)
	}
	now := time.Now()
	for _, other := range l.entries(e.Place()) {
		if t := touched(other); other != e && !t.Before(now) {
			now = t.Add(time.Microsecond)
		}
	}
	os.Chtimes(filepath.Dir(e.Dir()), now, now) // without it the entry is evicted a bit sooner
}

func touched(e *cache.Entry) time.Time {
	st, err := os.Stat(filepath.Dir(e.Dir()))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}
