package loader

import (
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
	if e, err := l.cfg.Cache.EntryAt(p, m.m, m.raw); !errors.Is(err, syscall.ENOSPC) {
		return e, err
	}
	// One at a time: what one is removing the others would count neither as room nor as what could go.
	l.room.Lock()
	defer l.room.Unlock()
	for {
		e, err := l.cfg.Cache.EntryAt(p, m.m, m.raw)
		if !errors.Is(err, syscall.ENOSPC) {
			return e, err
		}
		if err := l.enough(p, m); err != nil {
			return nil, err
		}
		evicted, evictErr := l.evict(p)
		if evictErr != nil {
			return nil, errors.Join(err, evictErr)
		}
		if !evicted {
			return nil, fetch.Fail(err, "%s needs %d bytes in %s, there is too little room and nothing can be evicted, %d bytes are leased or still read: %s, or unpublish another model",
				m.m.Model, m.m.Size(), p.Dir(), l.leased(p), larger(p))
		}
	}
}

// enough fails where m would not fit if every entry that nobody wants had gone.
func (l *Loader) enough(p *cache.Place, m *model) error {
	room, err := p.Room()
	if err != nil {
		return err
	}
	need, idle := blocks(m.m, room.Block), l.unwanted(p, room.Block)
	if need <= min(room.Available+idle, room.Size) {
		return nil
	}
	bound := ""
	if room.Bound != "" {
		bound = " by " + room.Bound
	}
	return fetch.Fail(syscall.ENOSPC, "%s needs %d bytes, but %s has %d available%s, %d more could be evicted, and %d bytes are leased or still read: %s, or unpublish another model",
		m.m.Model, need, p.Dir(), room.Available, bound, idle, l.leased(p), larger(p))
}

// larger is what to do about a place that is too small.
func larger(p *cache.Place) string {
	if p.Kind() == cache.Memory {
		return "give it more memory"
	}
	return "use a larger disk"
}

// unwanted returns the bytes that the entries of a place take that could be evicted.
func (l *Loader) unwanted(p *cache.Place, block uint64) (n uint64) {
	entries := l.entries(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		if m := l.models[e.ID()]; m == nil || !m.wanted() {
			n += blocks(e.Manifest(), block)
		}
	}
	return n
}

// blocks returns the bytes that a model's files take on a medium with blocks of that size.
func blocks(m *manifest.Manifest, block uint64) (n uint64) {
	for i := range m.Files {
		n += (uint64(m.Files[i].Size) + block - 1) / block * block
	}
	return n
}

// entries returns the entries of a place.
func (l *Loader) entries(p *cache.Place) []*cache.Entry {
	return slices.DeleteFunc(l.cfg.Cache.Entries(), func(e *cache.Entry) bool { return e.Place() != p })
}

// evict removes one entry of a place and reports whether there was one to remove.
func (l *Loader) evict(p *cache.Place) (bool, error) {
	for _, e := range l.idle(p) {
		m, load := l.claim(e)
		if m == nil {
			continue
		}
		defer m.unlock()
		if load != nil {
			load.Cancel()
		}
		if err := l.cfg.Cache.Remove(e); err != nil {
			return false, err
		}
		if err := os.RemoveAll(l.frame(m.id)); err != nil {
			return false, err
		}
		l.mu.Lock()
		m.entry, m.load = nil, nil
		l.forget(m)
		l.mu.Unlock()
		l.metrics.evictions.Inc()
		l.metrics.evicted.Add(float64(m.m.Size()))
		l.cfg.Log.Info("evicted", "model", m.m.Model.String(), "medium", p.Kind(), "bytes", m.m.Size())
		return true, nil
	}
	return false, nil
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

// touch notes, on the medium, that an entry was leased until now. It is later than every other one of
// its place, also where the clock was set back since they were: the order counts, not the time.
func (l *Loader) touch(e *cache.Entry) {
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
