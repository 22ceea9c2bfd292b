package tmpfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the kernel says what it gives, see Documentation/admin-guide/mm/transhuge.rst.
const (
	hugeSize    = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
	hugeEnabled = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
)

// HugePages says whether a file in dir, which is on a tmpfs, gets huge pages now: "yes", or "no: " or
// "unknown: " and why. It makes one of that size, maps it and looks at what it got: the option of the
// mount is only a wish.
func HugePages(dir string) string {
	size, err := readSize(hugeSize)
	if err != nil {
		return "no: this kernel has none"
	}
	got, err := try(dir, size)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return "unknown: it is full"
	case err != nil:
		return fmt.Sprintf("unknown: %v", err)
	case got:
		return "yes"
	}
	if b, err := os.ReadFile(hugeEnabled); err == nil && strings.Contains(string(b), "[deny]") {
		return "no: " + hugeEnabled + " is deny"
	}
	if m, err := Find(dir); err == nil && m != nil && m.Huge != "always" {
		return "no: it is mounted with huge=" + m.Huge
	}
	return "no: there is none free: memory is fragmented or full of page cache"
}

// HugeBytes returns the bytes of all huge pages that files in memory have now, on the whole machine:
// from before to after a file was allocated it grows by what that got, and by what others did meanwhile.
func HugeBytes() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "\nShmemHugePages:")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
	if err != nil {
		return 0 // this kernel has none
	}
	return n << 10
}

func readSize(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < os.Getpagesize() || n > 1<<30 {
		return 0, fmt.Errorf("%s: %.40q is not a size of pages", path, b)
	}
	return n, nil
}

// try makes a file of size bytes in dir and reports whether it is mapped as one page.
func try(dir string, size int) (_ bool, err error) {
	f, err := os.CreateTemp(dir, ".huge-*")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return false, err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(p)) }()
	p[0] = 1
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return false, err
	}
	return mapped(smaps, f.Name()) >= size, nil
}

// mapped returns how many bytes of a file are mapped by huge pages, by /proc/PID/smaps, see proc_pid_smaps(5).
func mapped(smaps []byte, path string) int {
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	within := false
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) > 0 && !strings.HasSuffix(fields[0], ":"):
			within = strings.HasSuffix(lines.Text(), " "+path)
		case within && len(fields) > 1 && fields[0] == "ShmemPmdMapped:":
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}
