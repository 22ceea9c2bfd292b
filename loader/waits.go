package loader

import (
	"time"

	"github.com/headstart-serving/headstart/loader/modelfs"
)

// errNobody is why reads of a model without a load fail: what was missing is not fetched any more.
const errNobody = "nobody has a lease on the model any more"

// LongestWait is the read of a model's files that has waited longest of those that wait now.
type LongestWait struct {
	File    string  `json:"file"`
	Offset  int64   `json:"offset"`
	Seconds float64 `json:"seconds"`
	Thread  uint32  `json:"thread,omitempty"` // that reads, as the node numbers it
	Reads   int     `json:"waiting_reads"`
	Reason  string  `json:"reason"`
}

// Why says what keeps a read waiting, see [fetch.Load.Why].
func (v *view) Why(file int, off, n int64) string {
	load := v.load()
	if load == nil && !v.have(file, off, n) {
		return errNobody
	}
	if load == nil {
		return "its bytes are there"
	}
	return load.Why(file, off, n)
}

// longestWait looks at all mounts of m, also those that are unpublished and still read. It returns nil
// where nobody waits.
func (m *model) longestWait() *LongestWait {
	m.loader.mu.Lock()
	var mounted []*modelfs.FS
	for f, of := range m.loader.shown {
		if of.model == m {
			mounted = append(mounted, f)
		}
	}
	m.loader.mu.Unlock()
	var oldest modelfs.Wait
	var from *modelfs.FS
	reads := 0
	for _, f := range mounted {
		w, n := f.Oldest()
		if reads += n; n > 0 && (from == nil || w.Since.Before(oldest.Since)) {
			oldest, from = w, f
		}
	}
	if from == nil {
		return nil
	}
	file, reason := from.Describe(oldest)
	return &LongestWait{File: file, Offset: oldest.Offset, Seconds: time.Since(oldest.Since).Seconds(), Thread: oldest.Thread, Reads: reads, Reason: reason}
}
