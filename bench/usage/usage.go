// Package usage sees what processes take while they run: memory and disk at their peaks, and processor
// time, all of it read from the kernel.
package usage

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// every is how often processes are looked at.
const every = 100 * time.Millisecond

// Watch looks at a process tree and a folder while they live.
type Watch struct {
	Memory, Disk int64 // bytes at their peaks, once it has ended
	stop         chan struct{}
	done         sync.WaitGroup
}

// Watching begins: pid and whatever descends from it, and dir.
func Watching(pid int, dir string) *Watch {
	w := &Watch{stop: make(chan struct{})}
	w.done.Go(func() {
		again := time.NewTicker(every)
		defer again.Stop()
		for {
			w.Memory = max(w.Memory, PeakMemory(pid))
			w.Disk = max(w.Disk, DiskUsed(dir))
			select {
			case <-again.C:
			case <-w.stop:
				return
			}
		}
	})
	return w
}

// End ends it. What the processes left in the folder counts, too.
func (w *Watch) End(dir string) {
	close(w.stop)
	w.done.Wait()
	w.Disk = max(w.Disk, DiskUsed(dir))
}

// PeakMemory returns the sum of the peaks of a process and its living descendants, in bytes: no less
// than what they held at one time.
func PeakMemory(pid int) (n int64) {
	for _, p := range descendants(pid) {
		n += HighWater(p)
	}
	return n
}

// HighWater returns a process's VmHWM in bytes, 0 when it has ended.
func HighWater(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(status, []byte("VmHWM:"))
	if !ok {
		return 0
	}
	fields := strings.Fields(string(rest[:min(len(rest), 64)]))
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// DiskUsed returns what the files below dir take, in bytes. Files that come and go while it looks count or not.
func DiskUsed(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// CPU returns the processor time that a living process has taken, in seconds (proc(5), stat, fields 14
// and 15, in the hundredths that USER_HZ is on every Linux that Go knows).
func CPU(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return parseTimes(string(stat), 2)
}
