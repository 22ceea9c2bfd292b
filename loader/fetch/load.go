package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/manifest"
)

// Load is the fetching of one entry. It has a context of its own: no reader's end ends it, only
// Cancel, the engine's end, success, and a failure that trying again does not mend.
type Load struct {
	engine *Engine
	entry  *cache.Entry
	m      *manifest.Manifest
	ctx    context.Context
	cancel context.CancelCauseFunc

	ended chan struct{} // closed when err is final: success, failure or Cancel
	done  chan struct{} // closed when, after that, no goroutine writes to the entry
	files []chan struct{}
	first []int    // index of each file's first chunk in status
	keys  []string // of each file's object

	// The engine's mutex guards what follows.
	order     []ref
	heads     int    // so many of order come before any other load's rest
	next      int    // order[:next] has been looked at
	status    []int8 // queued, demanded, taken or finished
	missing   int    // chunks that are not finished
	inFlight  int    // jobs that may write to the entry
	waiting   map[int]*arrival
	troubles  map[int]int     // attempts that failed, by chunk
	mismatch  map[int]int     // of those, with wrong bytes
	flights   map[int]*stream // by chunk that is taken
	parts     map[int]part    // what has come of a chunk whose connection ended before
	err       error
	over      bool // ended is closed
	progress  Progress
	troubleAt time.Time // of the first failure since a chunk arrived
	recent    recent    // what arrived of late

	headsMissing int
	stalledAt    time.Time // since when somebody waits, while somebody does
}

const (
	queued   = iota // in order, or waiting for its next attempt
	demanded        // in the engine's queue of demands
	taken           // being received
	finished
)

// arrival is what the readers of one chunk wait for.
type arrival struct {
	ch      chan struct{} // closed when the chunk is verified
	readers int
	late    *time.Timer // looks whether the chunk is late; nil before it was taken
}

// Progress is how far a load is.
type Progress struct {
	Size      int64         // bytes of the model
	Verified  int64         // bytes that readers may see
	Fetched   int64         // bytes that this load received and verified
	InFlight  int           // chunks that are being received
	Waiting   int           // reads that wait for a chunk
	Wanted    string        // a chunk that is waited for, as "path at offset"; empty where none is
	Waits     int           // reads that had to wait, so far
	Stalls    int           // stretches of time in which at least one read waited
	Stalled   time.Duration // their length together, that of the one that runs included
	Refetches int           // attempts that failed and were made again
	Reason    string        // what holds the load up, in words; empty while chunks arrive
	Source    string        // where chunks come from, Config.Name
	Recent    float64       // bytes per second, of late
	Learnt    int           // chunks whose place in the order was learnt
	Started   time.Time
	First     time.Time // when the first chunk was verified, zero before
	Heads     time.Time // when the last of the small files and heads was, zero before
	Filled    time.Time // when the last chunk was, zero before
	Ended     time.Time // zero before
}

// Done is closed when the load has ended and nothing writes to the entry any more.
func (l *Load) Done() <-chan struct{} { return l.done }

// Err returns nil while the load runs and after success, and why it failed otherwise.
func (l *Load) Err() error {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	return l.err
}

// FileDone returns a channel that is closed when every chunk of Files[file] is verified.
func (l *Load) FileDone(file int) <-chan struct{} { return l.files[file] }

// Entry returns the entry that the load fills.
func (l *Load) Entry() *cache.Entry { return l.entry }

// Progress returns a snapshot.
func (l *Load) Progress() Progress {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	p := l.progress
	p.Size, p.Verified = l.m.Size(), l.entry.Bytes()
	now := time.Now()
	if !l.stalledAt.IsZero() {
		p.Stalls++
		p.Stalled += now.Sub(l.stalledAt)
	}
	if p.Ended.IsZero() {
		p.Recent = l.recent.rate(now, p.Started)
	}
	p.Wanted = l.wanted()
	return p
}

// errCancelled is the error of a load that was cancelled.
var errCancelled = fmt.Errorf("the load was cancelled: %w", context.Canceled)

// Cancel ends the load, unless it has ended, and waits until no goroutine writes to the entry. What
// is verified stays; a new load continues there.
func (l *Load) Cancel() {
	l.engine.end(l, errCancelled)
	<-l.done
}

// Wait returns nil when the n bytes of Files[file] from off are verified. Those that are missing are
// fetched before all that nobody waits for. Bytes behind the file's end count as there. It fails when
// ctx ends, with ctx's error, and when the load does, with the load's.
func (l *Load) Wait(ctx context.Context, file int, off, n int64) error {
	size := l.m.Files[file].Size
	if off < 0 || n <= 0 || off >= size {
		return nil
	}
	last := int((off + min(n, size-off) - 1) / l.m.ChunkSize)
	for c := int(off / l.m.ChunkSize); c <= last; c++ {
		if !l.entry.Have(file, c) {
			return l.await(ctx, file, c, last)
		}
	}
	return nil
}

// await demands the chunks from first to last and waits for them.
func (l *Load) await(ctx context.Context, file, first, last int) error {
	e := l.engine
	e.mu.Lock()
	l.stall(1)
	for c := first; c <= last; c++ {
		// One that failed has its next attempt set: more readers do not make it come sooner.
		if i := l.first[file] + c; l.troubles[i] == 0 {
			e.demand(l, i)
		}
	}
	e.mu.Unlock()
	var err error
	for c := first; c <= last && err == nil; c++ {
		err = l.awaitChunk(ctx, file, c)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.stall(-1)
	return err
}

func (l *Load) awaitChunk(ctx context.Context, file, chunk int) error {
	i := l.first[file] + chunk
	l.engine.mu.Lock()
	if l.entry.Have(file, chunk) {
		l.engine.mu.Unlock()
		return nil
	}
	a := l.waiting[i]
	if a == nil {
		a = &arrival{ch: make(chan struct{})}
		l.waiting[i] = a
		l.engine.watchLate(l, i)
	}
	a.readers++
	l.engine.mu.Unlock()
	select {
	case <-a.ch:
		return nil
	case <-ctx.Done():
		l.leave(i, a)
		return ctx.Err()
	case <-l.ended:
		if l.entry.Have(file, chunk) {
			return nil
		}
		l.leave(i, a)
		return l.Err()
	}
}

// leave takes a reader off a chunk that it no longer waits for.
func (l *Load) leave(i int, a *arrival) {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	if a.readers--; a.readers == 0 && l.waiting[i] == a {
		delete(l.waiting, i)
		a.stop()
	}
}

// stop ends the look at a chunk that nobody waits for.
func (a *arrival) stop() {
	if a.late != nil {
		a.late.Stop()
	}
}

// partOf returns what has come of a chunk.
func (l *Load) partOf(i int) part {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	return l.parts[i]
}

// chunk returns what the manifest says about a chunk.
func (l *Load) chunk(r ref) manifest.Chunk {
	f := &l.m.Files[r.file]
	off := int64(r.chunk) * l.m.ChunkSize
	return manifest.Chunk{File: r.file, Index: r.chunk, Offset: off, Size: min(l.m.ChunkSize, f.Size-off), CRC32C: f.Chunks[r.chunk]}
}

// locate returns the chunk with index i in status.
func (l *Load) locate(i int) ref {
	lo, hi := 0, len(l.first) // the last file whose first chunk is not behind i
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; l.first[mid] <= i {
			lo = mid
		} else {
			hi = mid
		}
	}
	return ref{lo, i - l.first[lo]}
}

// cause names a failure for the metrics.
func cause(err error) string {
	var status *StatusError
	var mismatch *manifest.MismatchError
	switch {
	case errors.As(err, &mismatch) && mismatch.Sum == "size":
		return "short"
	case errors.As(err, &mismatch):
		return "corrupt"
	case errors.Is(err, errStalled):
		return "stalled"
	case errors.Is(err, errBehind):
		return "slow"
	case errors.As(err, &status) && status.Code == 429:
		return "throttled"
	case errors.As(err, &status):
		return "server"
	}
	return "network"
}
