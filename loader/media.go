package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
)

// MediumStatus is one medium of a node. Numbers are bytes.
type MediumStatus struct {
	Kind      cache.Kind `json:"medium"`
	Dir       string     `json:"dir"`
	Size      uint64     `json:"bytes"`
	Available uint64     `json:"available_bytes"`
	Bound     string     `json:"bound,omitempty"`      // what leaves less than its size has
	HugePages string     `json:"huge_pages,omitempty"` // "yes", or "no: " or "unknown: " and why; of memory
	Charged   string     `json:"charged,omitempty"`    // who is charged for the memory
	New       bool       `json:"new"`                  // models that are asked for may go there
}

// charged says whose limit memory counts against: see the kernel's admin-guide/cgroup-v2.rst, "Memory
// Ownership": the cgroup that touches a page first, which for a model is the node's, not its readers'.
const charged = "the node's cgroup, which receives the models; readers of a complete one are charged nothing"

// makeEntry finds the entry of m, or makes it on the first medium where it fits and says why there. The
// caller has m's token.
func (l *Loader) makeEntry(m *model) (*cache.Entry, error) {
	places := l.cfg.Cache.Places()
	if l.cfg.Cache.Find(m.id) != nil {
		return l.cfg.Cache.EntryAt(places[0], m.m, m.raw)
	}
	var refused []string
	for _, p := range places {
		before, err := p.Room()
		if err != nil {
			return nil, err // nobody knows what there is: no model is put on a guess
		}
		e, err := l.makeIn(p, m)
		if errors.Is(err, syscall.ENOSPC) {
			refused = append(refused, err.Error())
			continue
		}
		if err != nil {
			return nil, err
		}
		m.chosen(e, before, refused)
		return e, nil
	}
	return nil, fetch.Fail(syscall.ENOSPC, "%s", strings.Join(refused, "; and "))
}

// chosen notes why m's entry lies where it does.
func (m *model) chosen(e *cache.Entry, before cache.Room, refused []string) {
	l, p := m.loader, e.Place()
	why := "it is the only one for new models"
	switch {
	case len(refused) > 0:
		why = "not in memory: " + strings.Join(refused, "; ")
	case len(l.cfg.Cache.Places()) > 1:
		why = fmt.Sprintf("%d bytes fit into the %d that were available", m.m.Size(), before.Available)
		if uint64(m.m.Size()) > before.Available {
			why = fmt.Sprintf("%d bytes fit after models that nobody leases went", m.m.Size())
		}
	}
	l.mu.Lock()
	m.medium = why
	l.mu.Unlock()
	l.cfg.Log.Info("a medium is chosen", "model", m.m.Model.String(), "medium", p.Kind(), "dir", p.Dir(), "bytes", m.m.Size(), "huge_page_bytes", e.HugeBytes(), "reason", why)
}

// media describes the media of the node.
func (l *Loader) media() []MediumStatus {
	all := []MediumStatus{}
	for _, p := range l.cfg.Cache.AllPlaces() {
		s := MediumStatus{Kind: p.Kind(), Dir: p.Dir(), HugePages: p.HugePages(), New: slices.Contains(l.cfg.Cache.Places(), p)}
		if room, err := p.Room(); err == nil {
			s.Size, s.Available, s.Bound = room.Size, room.Available, room.Bound
		} else {
			s.Bound = err.Error()
		}
		if p.Kind() == cache.Memory {
			s.Charged = charged
		}
		all = append(all, s)
	}
	return all
}
