package keeper

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// table is what the parent keeps. Its zero value is ready.
type table struct {
	mu   sync.Mutex
	kept []*kept // in the order in which they came
}

type kept struct {
	id    string
	fd    int
	words [][]byte // the record and the notes that followed
}

// apply does what a worker asks for. The table owns the packet's descriptor then.
func (t *table) apply(p packet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.kept, func(k *kept) bool { return k.id == p.ID })
	switch {
	case p.Op == opKeep && i < 0 && p.fd >= 0:
		t.kept = append(t.kept, &kept{id: p.ID, fd: p.fd, words: [][]byte{p.Data}})
		return
	case p.Op == opNote && i >= 0:
		t.kept[i].words = append(t.kept[i].words, p.Data)
	case p.Op == opDrop && i >= 0:
		unix.Close(t.kept[i].fd)
		t.kept = slices.Delete(t.kept, i, i+1)
	}
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// all returns the packets that tell everything.
func (t *table) all() []packet {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []packet
	for _, k := range t.kept {
		all = append(all, packet{Op: opKeep, ID: k.id, Data: k.words[0], fd: k.fd})
		for _, note := range k.words[1:] {
			all = append(all, packet{Op: opNote, ID: k.id, Data: note, fd: -1})
		}
	}
	return append(all, packet{Op: opEnd, fd: -1})
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.kept)
}

func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.kept {
		unix.Close(k.fd)
	}
	t.kept = nil
}
