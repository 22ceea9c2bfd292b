package demo

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
)

// slack is how many bytes there are beside the model's: manifest, state, metadata, the bucket's records.
const slack = 256 << 20

// rounding is what the files of a model may take beyond their bytes where pages are huge.
const rounding = 64 << 20

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

// medium decides what the node's cache, or fetch's directory, lies on.
func (d *demo) medium(road string) error {
	d.place.cache, d.result.Medium, d.place.media = d.place.Path(mediumDir), "a directory on disk", []string{"--medium", "disk"}
	switch {
	case d.cfg.Cache != "":
		sub, err := os.MkdirTemp(d.cfg.Cache, prefix)
		if err != nil {
			return fmt.Errorf("the cache directory: %w", err)
		}
		d.place.other, d.place.cache, d.result.Medium = sub, sub, "the directory "+d.cfg.Cache
		var st unix.Statfs_t
		if err := unix.Statfs(sub, &st); err != nil {
			return fmt.Errorf("looking at the cache directory: %w", err)
		}
		if int64(st.Type) == unix.TMPFS_MAGIC {
			d.place.media = nil // it is memory as it is
		}
	case road == Node && memory.Fits(d.need()):
		d.place.media = []string{"--medium", "memory", "--memory-limit", strconv.FormatInt(d.need()+rounding, 10)}
	}
	return nil
}

// found takes over where the node has memory for models, and what kind.
func (d *demo) found(media []loader.MediumStatus) {
	for _, m := range media {
		if m.Kind != cache.Memory || !m.New || d.cfg.Cache != "" {
			continue
		}
		d.place.tmpfs, d.result.Medium = m.Dir, "tmpfs"
		if m.HugePages == "yes" {
			d.result.Medium = "tmpfs with huge pages"
		}
	}
}
