package staging

import (
	"bytes"
	"errors"
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

// watch looks at a process tree and a folder while they live.
type watch struct {
	memory, disk int64 // bytes at their peaks
	stop         chan struct{}
	done         sync.WaitGroup
}

// watching begins: pid and whatever descends from it, and dir.
func watching(pid int, dir string) *watch {
	w := &watch{stop: make(chan struct{})}
	w.done.Go(func() {
		again := time.NewTicker(every)
		defer again.Stop()
		for {
			w.memory = max(w.memory, peakMemory(pid))
			w.disk = max(w.disk, diskUsed(dir))
			select {
			case <-again.C:
			case <-w.stop:
				return
			}
		}
	})
	return w
}

// end ends it. What the processes left in the folder counts, too.
func (w *watch) end(dir string) {
	close(w.stop)
	w.done.Wait()
	w.disk = max(w.disk, diskUsed(dir))
}

// peakMemory returns the sum of the peaks of a process and its living descendants, in bytes: no less
// than what they held at one time.
func peakMemory(pid int) int64 {
	n := highWater(pid)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for _, word := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(word); err == nil {
				n += peakMemory(child)
			}
		}
	}
	return n
}

// highWater returns a process's VmHWM in bytes, 0 when it has ended.
func highWater(pid int) int64 {
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

// diskUsed returns what the files below dir take, in bytes. Files that come and go while it looks count or not.
func diskUsed(dir string) (n int64) {
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

// cpuOf returns the processor time that a living process has taken, in seconds (proc(5), stat, fields 14
// and 15, in the hundredths that USER_HZ is on every Linux that Go knows).
func cpuOf(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return parseStat(string(stat))
}

func parseStat(stat string) (float64, error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is not understood")
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return 0, fmt.Errorf("/proc/PID/stat is not understood: %w", err)
	}
	return float64(user+system) / 100, nil
}
