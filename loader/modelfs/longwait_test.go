package modelfs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal is what a log was told.
type journal struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.out.Write(p)
}

// take returns what was told since the last time.
func (j *journal) take() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.out.Reset()
	return j.out.String()
}

// TestLongWaits: the log tells of the oldest of many waits, once, then rarely, and of its end; of short
// ones it says nothing.
func TestLongWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out journal
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		w := &waits{log: log, why: func(w Wait) (string, string) { return fmt.Sprintf("f%d", w.File), fmt.Sprintf("reason %d", w.File) }}
		lines := func() []string {
			synctest.Wait()
			return strings.Split(strings.TrimSpace(out.take()), "\n")
		}
		begin := func(file int) func(error) {
			return w.begin(Wait{File: file, Offset: 7, Bytes: 9, Thread: 42, Since: time.Now()})
		}
		for range 100 { // short ones, one after the other
			end := begin(0)
			time.Sleep(longWait - time.Millisecond)
			end(nil)
		}
		if got := lines(); got[0] != "" {
			t.Errorf("of short waits: %q", got)
		}
		var ends []func(error)
		for i := range 1000 {
			ends = append(ends, begin(i))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(longWait)
		if got := lines(); len(got) != 1 || got[0] != `level=WARN msg="a reader waits for bytes" file=f0 offset=7 bytes=9 waited=10s thread=42 waiting_reads=1000 reason="reason 0"` {
			t.Errorf("after %v: %q", longWait, got)
		}
		if one, n := w.oldest(); n != 1000 || one.File != 0 {
			t.Errorf("the oldest is %+v of %d", one, n)
		}
		ends[0](nil)
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], `a reader's long wait has ended" file=f0 offset=7 waited=11s outcome="its bytes are there"`) {
			t.Errorf("its end: %q", got)
		}
		for _, end := range ends[2:] {
			end(nil)
		}
		if got := lines(); got[0] != "" {
			t.Errorf("of ends that nobody was told to wait for: %q", got)
		}
		time.Sleep(10 * time.Minute)
		got := lines()
		if len(got) != 10 || !strings.Contains(got[9], "file=f1") {
			t.Errorf("in ten minutes: %d lines, %q", len(got), got)
		}
		ends[1](errors.New("gone"))
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], `outcome="the read fails: gone"`) {
			t.Errorf("its end: %q", got)
		}
		if _, n := w.oldest(); n != 0 || w.timer != nil {
			t.Errorf("left: %d waits", n)
		}
	})
}
