package order

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Recorder notes which chunk was first demanded after which. It is safe for concurrent use, and cheap
// where a chunk was seen before.
type Recorder struct {
	seen []atomic.Bool

	mu     sync.Mutex
	chunks []int
}

// NewRecorder returns a recorder of n chunks.
func NewRecorder(n int) *Recorder { return &Recorder{seen: make([]atomic.Bool, n)} }

// Demand notes that a chunk was demanded, and reports whether it was for the first time.
func (r *Recorder) Demand(chunk int) bool {
	if r.seen[chunk].Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[chunk].Swap(true) {
		return false
	}
	r.chunks = append(r.chunks, chunk)
	return true
}

// Chunks returns the order so far.
func (r *Recorder) Chunks() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.chunks)
}
