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
)

// makeEntry makes the entry of m with all of its room. Where there is too little, entries that
// nobody leases go, the one that was leased least recently first. The caller has m's token.
func (l *Loader) makeEntry(m *model) (*cache.Entry, error) {
	for {
		e, err := l.cfg.Cache.Entry(m.m, m.raw)
		if !errors.Is(err, syscall.ENOSPC) {
			return e, err
		}
		evicted, evictErr := l.evict()
		if evictErr != nil {
			return nil, errors.Join(err, evictErr)
		}
		if !evicted {
			return nil, fetch.Fail(err, "%v; nothing can be evicted, %d bytes are leased", err, l.leased())
		}
	}
}

// evict removes one entry and reports whether there was one to remove.
func (l *Loader) evict() (bool, error) {
	for _, e := range l.idle() {
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
		l.mu.Lock()
		m.entry, m.load = nil, nil
		l.forget(m)
		l.mu.Unlock()
		l.metrics.evictions.Inc()
		l.cfg.Log.Info("evicted", "model", m.m.Model.String(), "bytes", m.m.Size())
		return true, nil
	}
	return false, nil
}

// idle returns the entries that nobody may want, in the order in which they are to go: complete
// ones first, for an unfinished one may be the next to be asked for.
func (l *Loader) idle() []*cache.Entry {
	entries := l.cfg.Cache.Entries()
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
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.model(e.Manifest(), e.Raw())
	if m.users > 0 {
		return nil, nil
	}
	select {
	case m.making <- struct{}{}:
	default:
		return nil, nil
	}
	l.keep(m)
	return m, m.load
}

// leased returns the bytes of the entries that are wanted.
func (l *Loader) leased() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, m := range l.models {
		if m.users > 0 && m.entry != nil {
			n += m.m.Size()
		}
	}
	return n
}

// touch notes, on the medium, that an entry was leased until now.
func touch(e *cache.Entry) {
	now := time.Now()
	os.Chtimes(filepath.Dir(e.Dir()), now, now) // without it the entry is evicted a bit sooner
}

func touched(e *cache.Entry) time.Time {
	st, err := os.Stat(filepath.Dir(e.Dir()))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}
