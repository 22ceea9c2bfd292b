package modelfs

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// longWait is when a reader has waited so long that somebody may wonder why.
	longWait = 10 * time.Second
	// longWaitAgain is how long the log is silent about the waits of a mount after it has told of one.
	longWaitAgain = time.Minute
)

// Wait is a read that waits for its bytes.
type Wait struct {
	File   int // index into the manifest's files
	Offset int64
	Bytes  int64
	Thread uint32 // that reads, 0 where it is not of this process's namespace
	Since  time.Time
}

// explainer is a [Model] that can say what a read waits for.
type explainer interface {
	// Why says in a few words why n bytes from off of Files[file] are not all verified yet.
	Why(file int, off, n int64) string
}

// waits are the reads that wait. It writes a line to the log about the one that has waited longest, after
// longWait and then rarely, and one when a wait that it has told of ends: vLLM waits without a limit and
// without a word.
type waits struct {
	log *slog.Logger
	why func(w Wait) (file, reason string)

	mu    sync.Mutex
	all   map[*waiting]struct{}
	timer *time.Timer // runs while somebody waits
	quiet time.Time   // no line before that
}

type waiting struct {
	Wait
	told bool
}

// begin notes that a read waits. The caller calls end with what the wait has ended with.
func (w *waits) begin(one Wait) (end func(error)) {
	at := &waiting{Wait: one}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*waiting]struct{}{}
	}
	w.all[at] = struct{}{}
	if w.timer == nil {
		w.timer = time.AfterFunc(longWait, w.look)
	}
	return func(err error) { w.end(at, err) }
}

func (w *waits) end(at *waiting, err error) {
	w.mu.Lock()
	delete(w.all, at)
	if len(w.all) == 0 && w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.mu.Unlock()
	if !at.told {
		return
	}
	outcome := "its bytes are there"
	if errors.Is(err, errKilled) {
		outcome = "the reader has gone"
	} else if err != nil {
		outcome = "the read fails: " + err.Error()
	}
	file, _ := w.why(at.Wait)
	w.log.Info("a reader's long wait has ended", "file", file, "offset", at.Offset, "waited", time.Since(at.Since).Round(time.Millisecond), "outcome", outcome)
}

// oldest returns the wait that began first, and how many wait.
func (w *waits) oldest() (Wait, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.oldestLocked(); at != nil {
		return at.Wait, len(w.all)
	}
	return Wait{}, 0
}

func (w *waits) oldestLocked() (oldest *waiting) {
	for at := range w.all {
		if oldest == nil || at.Since.Before(oldest.Since) {
			oldest = at
		}
	}
	return oldest
}

// look runs when a line may be due.
func (w *waits) look() {
	w.mu.Lock()
	oldest := w.oldestLocked()
	if oldest == nil {
		w.mu.Unlock()
		return
	}
	now := time.Now()
	due := oldest.Since.Add(longWait)
	if due.Before(w.quiet) {
		due = w.quiet
	}
	if due.After(now) {
		w.timer.Reset(due.Sub(now))
		w.mu.Unlock()
		return
	}
	oldest.told = true
	one, readers := oldest.Wait, len(w.all)
	w.quiet = now.Add(longWaitAgain)
	w.timer.Reset(longWaitAgain)
	w.mu.Unlock()
	file, reason := w.why(one)
	w.log.Warn("a reader waits for bytes", "file", file, "offset", one.Offset, "bytes", one.Bytes, "waited", now.Sub(one.Since).Round(time.Second),
		"thread", one.Thread, "waiting_reads", readers, "reason", reason)
}

// Describe names the file of a wait and what it waits for.
func (f *FS) Describe(w Wait) (file, reason string) {
	reason = "its bytes have not arrived"
	if e, ok := f.model.(explainer); ok {
		reason = e.Why(w.File, w.Offset, w.Bytes)
	}
	return f.model.Manifest().Files[w.File].Path, reason
}

// Oldest returns the read that waits longest now, and how many wait; with none the first means nothing.
func (f *FS) Oldest() (Wait, int) { return f.waits.oldest() }
