package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	slack  = 256 << 20 // bytes beside the model's: manifest, state, metadata, the bucket's records
	memory = 2 << 30   // bytes that a tmpfs leaves to everybody else
)

// need returns the bytes that the medium has to have room for.
func (d *demo) need() int64 {
	n := d.result.Bytes + slack
	if d.cfg.Compare {
		n += d.result.Bytes // a second copy
	}
	return n
}

// room fails before the first byte when the bucket, or the bucket and the medium, do not fit.
func (d *demo) room(road string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.place.dir, &st); err != nil {
		return fmt.Errorf("looking at the temporary directory: %w", err)
	}
	free, want := int64(st.Bavail)*st.Bsize, d.result.Bytes+slack
	if d.cfg.VLLM != nil {
		want += d.result.Bytes // the plain copy
	}
	if d.cfg.Cache == "" && (road != Node || !fits(d.need())) {
		want += d.need()
	}
	if free < want {
		return &RoomError{Dir: d.place.dir, Free: free, Want: want}
	}
	return nil
}

// RoomError says that the temporary directory is too small.
type RoomError struct {
	Dir        string
	Free, Want int64 // bytes
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("%s has %s free and the demo needs %s: take a smaller --model, or set TMPDIR", e.Dir, bytesOf(e.Free), bytesOf(e.Want))
}

func (e *RoomError) Unwrap() error { return unix.ENOSPC }

// road returns the road to take, and why it is not the node's when that was not asked for.
func (d *demo) road() (road, why string) {
	if d.cfg.Road != "" {
		return d.cfg.Road, ""
	}
	dir := d.place.path(mediumDir)
	if err := unix.Mount(prefix+"probe", dir, "tmpfs", 0, "size=4k"); err != nil {
		return Fetch, fmt.Sprintf("mounting: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		return Fetch, fmt.Sprintf("unmounting: %v", err)
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return Fetch, fmt.Sprint(err)
	}
	f.Close()
	return Node, ""
}

// medium makes ready what the node's cache, or fetch's directory, lies on.
func (d *demo) medium(road string) error {
	dir := d.place.path(mediumDir)
	if d.cfg.Cache != "" {
		sub, err := os.MkdirTemp(d.cfg.Cache, prefix)
		if err != nil {
			return fmt.Errorf("the cache directory: %w", err)
		}
		d.place.other, d.place.cache = sub, sub
		d.result.Medium = "the directory " + d.cfg.Cache
		return nil
	}
	d.place.cache, d.result.Medium = dir, "a directory on disk"
	if road != Node || !fits(d.need()) {
		return nil
	}
	size := "size=" + strconv.FormatInt(d.need(), 10) + ",mode=0700"
	err := unix.Mount(prefix+"cache", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, size+",huge=always")
	d.result.Medium = "tmpfs with huge pages"
	if errors.Is(err, unix.EINVAL) { // a kernel without huge pages
		err = unix.Mount(prefix+"cache", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, size)
		d.result.Medium = "tmpfs"
	}
	if err != nil {
		return fmt.Errorf("mounting a tmpfs for the cache: %w", err)
	}
	d.place.tmpfs, d.place.cache = dir, filepath.Join(dir, "node")
	return os.Mkdir(d.place.cache, 0o700)
}

// reserve is memory of the tmpfs that has been touched and is held until it is needed.
type reserve struct{ path string } // of a file that fills it; "" for none

// touch takes as much memory of the tmpfs as the model needs. A virtual machine that has not touched a
// page for a while gets it from its host only then, at a fraction of the speed of anything here: without
// this, the timeline would show the hypervisor.
func (d *demo) touch(ctx context.Context) (reserve, error) {
	f, err := os.CreateTemp(d.place.tmpfs, "touched-")
	if err != nil {
		return reserve{}, fmt.Errorf("touching memory: %w", err)
	}
	defer f.Close()
	zeros := make([]byte, 4<<20) // written, for fallocate leaves the pages of a tmpfs untouched
	for off := int64(0); off < d.result.Bytes; off += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return reserve{}, err
		}
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), d.result.Bytes-off)], off); err != nil {
			return reserve{}, fmt.Errorf("touching memory: %w", err)
		}
	}
	return reserve{f.Name()}, nil
}

// release gives the memory back, at the moment when somebody else takes it.
func (r reserve) release() error {
	if r.path == "" {
		return nil
	}
	return os.Remove(r.path)
}

// fits reports whether memory has room for n bytes, by the machine's and by the cgroup's account.
func fits(n int64) bool {
	return n+memory <= min(available("/proc/meminfo"), cgroupFree("/sys/fs/cgroup"))
}

func available(meminfo string) int64 {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// cgroupFree returns what a container's limit leaves, or the largest number where there is none.
func cgroupFree(dir string) int64 {
	read := func(name string) (int64, bool) {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return n, err == nil
	}
	limit, ok := read("memory.max")
	used, ok2 := read("memory.current")
	if !ok || !ok2 {
		return 1<<63 - 1
	}
	return limit - used
}
