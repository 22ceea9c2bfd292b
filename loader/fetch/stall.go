package fetch

import (
	"fmt"
	"time"
)

// stall notes that one more read waits, or one less. A reader has many reads under way, for the kernel
// reads ahead: what they wait together says little, but a stretch in which at least one of them waits is
// time that a reader may lose. The caller holds the engine's mutex.
func (l *Load) stall(n int) {
	p := &l.progress
	l.engine.metrics.waiting.Add(float64(n))
	p.Waiting += n
	switch {
	case n > 0:
		p.Waits++
		if p.Waiting == 1 {
			l.stalledAt = time.Now()
		}
	case p.Waiting == 0:
		d := time.Since(l.stalledAt)
		l.stalledAt = time.Time{}
		p.Stalls++
		p.Stalled += d
		l.engine.metrics.stalled(l, 1, d)
	}
}

// wanted names one of the chunks that are waited for, the first in the manifest's order, or is empty. The
// caller holds the engine's mutex.
func (l *Load) wanted() string {
	first := -1
	for i := range l.waiting {
		if first < 0 || i < first {
			first = i
		}
	}
	if first < 0 {
		return ""
	}
	r := l.locate(first)
	return fmt.Sprintf("%s at %d", l.m.Files[r.file].Path, int64(r.chunk)*l.m.ChunkSize)
}

// isHead reports whether a chunk is one of those that come before all others.
func (l *Load) isHead(i int) bool {
	r := l.locate(i)
	return r.chunk == 0 || len(l.m.Files[r.file].Chunks) <= smallChunks
}

// there returns how many of order[:end] are verified.
func (l *Load) there(end int) (n int) {
	for _, r := range l.order[:end] {
		if l.status[l.first[r.file]+r.chunk] == finished {
			n++
		}
	}
	return n
}
