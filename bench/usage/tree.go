package usage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tree looks at what a process and its living descendants hold in memory of their own, for as long as it runs.
type Tree struct {
	Memory int64 // bytes at the peak, once it has ended
	stop   chan struct{}
	ended  chan struct{}
}

// often is how often a tree is looked at.
const often = 50 * time.Millisecond

// Looking begins. What the processes map of a tmpfs is not theirs: it is the file's.
func Looking(pid int) *Tree {
	t := &Tree{stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(t.ended)
		again := time.NewTicker(often)
		defer again.Stop()
		for {
			t.Memory = max(t.Memory, own(pid))
			select {
			case <-again.C:
			case <-t.stop:
				return
			}
		}
	}()
	return t
}

// End ends it.
func (t *Tree) End() {
	close(t.stop)
	<-t.ended
}

// own returns the anonymous and file-backed memory of the tree, in bytes.
func own(root int) (n int64) {
	for _, pid := range descendants(root) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			name, rest, _ := strings.Cut(line, ":")
			if fields := strings.Fields(rest); (name == "RssAnon" || name == "RssFile") && len(fields) > 0 {
				kib, _ := strconv.ParseInt(fields[0], 10, 64)
				n += kib << 10
			}
		}
	}
	return n
}

// TreeCPU returns the processor time that a process, its living descendants, and those of their children
// that have ended have taken, in seconds.
func TreeCPU(root int) (sum float64, err error) {
	for _, pid := range descendants(root) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil && pid != root {
			continue // it has ended, and its time is its parent's now
		}
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		t, err := parseTimes(string(stat), 4)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// parseTimes adds the first n of the fields utime, stime, cutime and cstime of proc(5), stat, in seconds.
func parseTimes(stat string, n int) (float64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name, in parentheses, may hold anything
	if len(fields) < 15 {
		return 0, errors.New("/proc/PID/stat is not understood")
	}
	var ticks int64
	for _, f := range fields[11 : 11+n] {
		t, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat is not understood: %w", err)
		}
		ticks += t
	}
	return float64(ticks) / 100, nil
}

// descendants returns a process and all that live below it.
func descendants(pid int) []int {
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for _, word := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(all, descendants(child)...)
			}
		}
	}
	return all
}
