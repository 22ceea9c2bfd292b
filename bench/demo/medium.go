package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/memory"
)

// slack is how many bytes there are beside the model's: manifest, state, metadata, the bucket's records.
const slack = 256 << 20

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
	if err := unix.Statfs(d.place.Path(), &st); err != nil {
		return fmt.Errorf("looking at the temporary directory: %w", err)
	}
	free, want := int64(st.Bavail)*st.Bsize, d.result.Bytes+slack
	if d.cfg.VLLM != nil {
		want += d.result.Bytes // the plain copy
	}
	if d.cfg.Cache == "" && (road != Node || !memory.Fits(d.need())) {
		want += d.need()
	}
	if free < want {
		return &RoomError{Dir: d.place.Path(), Free: free, Want: want}
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
	dir := d.place.Path(mediumDir)
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
	dir := d.place.Path(mediumDir)
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
	if road != Node || !memory.Fits(d.need()) {
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
