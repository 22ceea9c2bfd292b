package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// makeEntry makes the entry of m with all of its room. Where there is too little, entries that
// nobody leases go, the one that was leased least recently first; none goes where all of them would
// not make enough. The caller has m's token.
func (l *Loader) makeEntry(m *model) (*cache.Entry, error) {
	for {
		e, err := l.cfg.Cache.Entry(m.m, m.raw)
		if !errors.Is(err, syscall.ENOSPC) {
			return e, err
		}
		if err := l.enough(m); err != nil {
			return nil, err
		}
		evicted, evictErr := l.evict()
		if evictErr != nil {
			return nil, errors.Join(err, evictErr)
		}
		if !evicted {
			return nil, fetch.Fail(err, "%s needs %d bytes in %s, there is too little room and nothing can be evicted, %d bytes are leased or still read: use a larger disk, or unpublish another model",
				m.m.Model, m.m.Size(), l.cfg.Cache.Dir(), l.leased())
		}
	}
}

// enough fails where m would not fit if every entry that nobody wants had gone.
func (l *Loader) enough(m *model) error {
	dir := l.cfg.Cache.Dir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("looking at the file system of %s: %w", dir, err)
	}
	block := uint64(st.Bsize)
	need, available, idle := blocks(m.m, block), st.Bavail*block, l.unwanted(block)
	if need <= available+idle {
		return nil
	}
	return fetch.Fail(syscall.ENOSPC, "%s needs %d bytes, but %s has %d available, %d more could be evicted, and %d bytes are leased or still read: use a larger disk, or unpublish another model",
		m.m.Model, need, dir, available, idle, l.leased())
}

// unwanted returns the bytes that the entries take that could be evicted.
func (l *Loader) unwanted(block uint64) (n uint64) {
	entries := l.cfg.Cache.Entries()
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
		l.metrics.evicted.Add(float64(m.m.Size()))
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
	if m.wanted() {
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
		if m.wanted() && m.entry != nil {
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
