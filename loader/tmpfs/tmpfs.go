// Package tmpfs makes memory appear as a directory, with huge pages where the kernel gives them, and
// finds it again: a tmpfs stays when the process that mounted it ends, with all that is in it, and goes
// with a reboot. Mounting needs CAP_SYS_ADMIN.
package tmpfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

// source is what stands in the table of mounts for a tmpfs of this package.
const source = "headstart"

// Mount is a tmpfs.
type Mount struct {
	Dir  string
	Size int64  // bytes that files may have at most
	Used int64  // bytes that they have
	Huge string // the option huge=, "never" where there is none
	Ours bool   // Make mounted it, also if that was an earlier process
}

// Find returns the tmpfs that is mounted exactly at dir, or nil if nothing is. Another file system
// there is an error.
func Find(dir string) (*Mount, error) {
	p, err := mount.At(dir)
	if err != nil || p == nil {
		return nil, err
	}
	if p.Type != "tmpfs" {
		return nil, fmt.Errorf("%s is a mount of %s (%s), where a tmpfs is to be: unmount it, or use another directory", dir, p.Source, p.Type)
	}
	return look(dir, p)
}

func look(dir string, p *mount.Point) (*Mount, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("looking at the tmpfs at %s: %w", dir, err)
	}
	m := &Mount{Dir: dir, Size: int64(st.Blocks) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize, Huge: "never", Ours: p.Source == source}
	for option := range strings.SplitSeq(p.Super, ",") {
		if huge, ok := strings.CutPrefix(option, "huge="); ok {
			m.Huge = huge
		}
	}
	return m, nil
}

// Make mounts a tmpfs of size bytes at dir, which it makes if there is none: with the most of huge pages
// that the kernel knows. What lies in dir would be hidden: it must be empty.
func Make(dir string, size int64) (*Mount, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if names, err := os.ReadDir(dir); err != nil {
		return nil, err
	} else if len(names) > 0 {
		return nil, fmt.Errorf("%s has files in it, which a tmpfs would hide: move them away", dir)
	}
	err := error(unix.EINVAL)
	for _, huge := range []string{",huge=always", ",huge=within_size", ""} { // without CONFIG_TRANSPARENT_HUGEPAGE: EINVAL
		err = unix.Mount(source, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0755,size=%d%s", size, huge))
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mounting a tmpfs at %s: %w", dir, err)
	}
	return Find(dir)
}

// Resize gives a tmpfs another size. Less than is used in it is an error, and changes nothing.
func (m *Mount) Resize(size int64) error {
	if err := unix.Mount("", m.Dir, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("giving the tmpfs at %s %d bytes, of which %d are used: %w", m.Dir, size, m.Used, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.Dir, &st); err != nil {
		return fmt.Errorf("looking at the tmpfs at %s: %w", m.Dir, err)
	}
	m.Size = int64(st.Blocks) * st.Bsize
	return nil
}

// Remove unmounts it and gives its memory back. While a file in it is open the error wraps EBUSY and
// it stays.
func (m *Mount) Remove() error {
	if err := unix.Unmount(m.Dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting the tmpfs at %s: %w", m.Dir, err)
	}
	return os.Remove(m.Dir)
}
