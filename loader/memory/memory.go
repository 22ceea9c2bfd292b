// Package memory says how much memory a cache may still take: what the machine has available, and
// what the limits of this process's cgroups leave. The pages of a tmpfs, and those of the page cache,
// are charged to the cgroup of the process that touches them first, which is the one that receives a
// model; those of a tmpfs stay charged until the file is removed, also when that process has ended.
package memory

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Account is how much memory there is. Numbers are bytes.
type Account struct {
	Total  int64  // the machine's, or the lowest limit of a cgroup
	Free   int64  // of that, what can be taken: the rest is used, or left to others
	Bound  string // who sets Free: "the machine" or "the cgroup /sys/fs/cgroup/…"
	Spared int64  // what Free leaves untouched
}

// What is left to others: of the machine a twentieth, for the kernel reclaims and then kills before
// the last page is gone; of a cgroup what this program itself needs.
const (
	machineShare = 20
	machineLeast = 1 << 30
	cgroupSpare  = 256 << 20
)

// Read returns the account of this process.
func Read() (Account, error) { return read("/proc", "/sys/fs/cgroup") }

func read(proc, cgroups string) (Account, error) {
	a, err := machine(filepath.Join(proc, "meminfo"))
	if err != nil {
		return Account{}, fmt.Errorf("how much memory there is: %w", err)
	}
	dirs, err := own(filepath.Join(proc, "self/cgroup"), cgroups)
	if err != nil {
		return Account{}, fmt.Errorf("the limits of memory: %w", err)
	}
	for _, dir := range dirs {
		limit, used, ok, err := usage(dir)
		if err != nil {
			return Account{}, fmt.Errorf("the limits of memory: %w", err)
		}
		if !ok {
			continue
		}
		a.Total = min(a.Total, limit)
		if free := max(0, limit-used-cgroupSpare); free < a.Free {
			a.Free, a.Spared, a.Bound = free, cgroupSpare, "the cgroup "+dir
		}
	}
	return a, nil
}

// machine reads MemTotal and MemAvailable, see proc_meminfo(5).
func machine(meminfo string) (Account, error) {
	values, err := table(meminfo, ":")
	if err != nil {
		return Account{}, err
	}
	total, available := values["MemTotal"]<<10, values["MemAvailable"]<<10
	if total <= 0 || available <= 0 {
		return Account{}, fmt.Errorf("%s has no MemTotal or MemAvailable", meminfo)
	}
	spared := max(total/machineShare, machineLeast)
	return Account{Total: total, Free: max(0, available-spared), Bound: "the machine", Spared: spared}, nil
}

// own returns the directories of the cgroups whose limits of memory hold for this process, the
// innermost first, by /proc/PID/cgroup, see cgroups(7). A container may see its own cgroup as the root.
func own(path, mounted string) ([]string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without cgroups
	}
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		root := ""
		switch {
		case fields[0] == "0" && fields[1] == "":
			root = mounted
		case has(fields[1], "memory"):
			root = filepath.Join(mounted, "memory")
		default:
			continue
		}
		below := filepath.Join("/", fields[2])
		if _, err := os.Stat(filepath.Join(root, below)); err != nil {
			below = "/" // the path is the host's, and the mount shows the container's
		}
		for {
			dirs = append(dirs, filepath.Join(root, below))
			if below == "/" {
				break
			}
			below = filepath.Dir(below)
		}
	}
	return dirs, nil
}

func has(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// usage returns a cgroup's limit and what of it is used, without the page cache of files, which gives
// way. It is not ok where there is no limit.
func usage(dir string) (limit, used int64, ok bool, err error) {
	limit, prefix, current := math.MaxInt64, "", "memory.current"
	for _, name := range []string{"memory.max", "memory.high"} { // above the latter it is slowed down
		if n, found, err := number(filepath.Join(dir, name)); err != nil {
			return 0, 0, false, err
		} else if found {
			limit = min(limit, n)
		}
	}
	if n, found, err := number(filepath.Join(dir, "memory.limit_in_bytes")); err != nil { // version 1
		return 0, 0, false, err
	} else if found {
		limit, prefix, current = n, "total_", "memory.usage_in_bytes"
	}
	if limit >= 1<<60 { // version 1 writes none as a large number
		return 0, 0, false, nil
	}
	used, found, err := number(filepath.Join(dir, current))
	if err != nil || !found {
		return 0, 0, false, err
	}
	stat, err := table(filepath.Join(dir, "memory.stat"), "")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, err
	}
	return limit, max(0, used-stat[prefix+"active_file"]-stat[prefix+"inactive_file"]), true, nil
}

// number reads a file with one number in it. There is none in one that does not exist or says "max".
func number(path string) (int64, bool, error) {
	b, err := os.ReadFile(path)
	text := strings.TrimSpace(string(b))
	if errors.Is(err, fs.ErrNotExist) || err == nil && text == "max" {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, false, fmt.Errorf("%s: %.40q is not a number of bytes", path, text)
	}
	return n, true, nil
}

// table reads lines of a name and a number; what is not one is left out.
func table(path, suffix string) (map[string]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := make(map[string]int64)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil && n >= 0 {
			values[strings.TrimSuffix(fields[0], suffix)] = n
		}
	}
	return values, lines.Err()
}
