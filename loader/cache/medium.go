package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/memory"
)

// fault is one line for a person and a class for the program: the class does not repeat itself in
// the text.
type fault struct {
	text  string
	class error
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.class }

func fail(class error, format string, args ...any) error {
	return &fault{text: fmt.Sprintf(format, args...), class: class}
}

// medium is the file system that entries lie on.
type medium struct {
	memory bool // nothing of it survives a reboot: no fsync is needed
	// account says how much memory there is, where entries lie in it.
	account func() (memory.Account, error)
}

// unfit names the file systems that are refused, by the magic numbers of statfs(2). On all of them
// a write through a mapping can fail after fallocate promised the room, and a failed one kills the
// process by SIGBUS.
var unfit = map[int64]string{
	unix.FUSE_SUPER_MAGIC: "FUSE",
	unix.NFS_SUPER_MAGIC:  "NFS",
	unix.V9FS_MAGIC:       "9p",
	unix.SMB_SUPER_MAGIC:  "SMB",
	unix.SMB2_SUPER_MAGIC: "SMB",
	unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.CEPH_SUPER_MAGIC: "Ceph",
	unix.AFS_SUPER_MAGIC:  "AFS",
}

// probe finds out whether dir, which exists, is on a medium that entries can lie on: it does there,
// with a small file, all that an entry needs.
func probe(dir string) (medium, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return medium{}, fmt.Errorf("looking at the file system of %s: %w", dir, err)
	}
	if name, bad := unfit[int64(st.Type)]; bad {
		return medium{}, fail(unix.EOPNOTSUPP, "%s is on %s, where a write through a mapping can fail: use a directory on a local disk (ext4, xfs) or tmpfs", dir, name)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return medium{}, fail(unix.EROFS, "%s is on a read-only file system: use a directory that can be written to", dir)
	}
	if err := tryMapping(dir); err != nil {
		return medium{}, err
	}
	return medium{memory: int64(st.Type) == unix.TMPFS_MAGIC, account: memory.Read}, nil
}

// tryMapping allocates a file in dir, writes to it through a shared mapping, and reads that back.
func tryMapping(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return explain(dir, err)
	}
	defer func() {
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}()
	size := os.Getpagesize()
	if err := allocate(f, int64(size)); err != nil {
		return explain(dir, err)
	}
	mapping, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fail(unix.EOPNOTSUPP, "%s is on a file system without shared mappings (%v): use a directory on a local disk (ext4, xfs) or tmpfs", dir, err)
	}
	mapping[0] = 1
	if err := unix.Munmap(mapping); err != nil {
		return fmt.Errorf("unmapping a file in %s: %w", dir, err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return explain(dir, err)
	}
	if b[0] != 1 {
		return fail(unix.EOPNOTSUPP, "%s is on a file system that does not show mapped writes to readers: use a directory on a local disk (ext4, xfs) or tmpfs", dir)
	}
	return nil
}

// allocate gives f size bytes that a later write cannot lack, and that size.
func allocate(f *os.File, size int64) error {
	if size == 0 {
		return f.Truncate(0)
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err != unix.EINTR {
			return err
		}
	}
}

// explain turns an error of the file system that dir is on into one line with a remedy.
func explain(dir string, err error) error {
	var path *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EROFS):
		return fail(unix.EROFS, "%s is on a read-only file system: use a directory that can be written to", dir)
	case errors.Is(err, unix.ENOSPC):
		return fail(unix.ENOSPC, "%s is on a full file system: make room or use another directory", dir)
	case errors.Is(err, unix.EDQUOT):
		return fail(unix.EDQUOT, "%s: the disk quota is used up: make room or use another directory", dir)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fail(unix.EOPNOTSUPP, "%s is on a file system without fallocate: use a directory on a local disk (ext4, xfs) or tmpfs", dir)
	case errors.Is(err, unix.ENOTDIR):
		return fail(unix.ENOTDIR, "%s is not a directory", dir)
	case errors.As(err, &path):
		return fmt.Errorf("%s: %s %s: %w", dir, path.Op, filepath.Base(path.Path), path.Err)
	}
	return fmt.Errorf("%s: %w", dir, err)
}

// room returns what can still be allocated below dir. The size of a tmpfs is a promise that nobody
// keeps: what it gives out beyond the memory that there is, the kernel takes back by killing.
func (md *medium) room(dir string) (Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Room{}, fmt.Errorf("looking at the file system of %s: %w", dir, err)
	}
	block := uint64(st.Bsize)
	r := Room{Size: st.Blocks * block, Available: st.Bavail * block, Block: block}
	if !md.memory {
		return r, nil
	}
	a, err := md.account()
	if err != nil {
		return Room{}, err
	}
	if left := uint64(a.Free); left < r.Available {
		r.Available, r.Bound = left, fmt.Sprintf("the memory of %s, of which %d bytes are left to others", a.Bound, a.Spared)
	}
	return r, nil
}

// lock takes the file at path for this process. Who holds it already is named by an EBUSY.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, explain(filepath.Dir(path), err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(held(f, err), f.Close())
		}
		// The one who held it may have removed the file in between: then the lock is worth nothing.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
				// The number only helps whoever comes second: no room for it does not matter.
				if err := f.Truncate(0); err == nil {
					_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
				}
				return f, nil
			}
		}
		f.Close()
	}
}

// held explains why f could not be locked.
func held(f *os.File, err error) error {
	dir := filepath.Dir(f.Name())
	if err != unix.EWOULDBLOCK {
		return explain(dir, err)
	}
	var b [20]byte
	n, _ := f.ReadAt(b[:], 0)
	var pid int
	if _, err := fmt.Sscan(string(b[:n]), &pid); err != nil {
		return fail(unix.EBUSY, "%s is in use by another headstart: stop it or use another directory", dir)
	}
	return fail(unix.EBUSY, "%s is in use by another headstart, process %d: stop it or use another directory", dir, pid)
}
