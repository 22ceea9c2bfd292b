package file

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Copy clones a file where the file system can (XFS, Btrfs: at once, and no space is used), else the
// kernel copies it (on NFS and Lustre perhaps the server), else it is read and written. A directory
// knows no sums, so the copy is read back before it gets its name: damage does not spread from
// commit to commit.
//
// A hard link would do with neither space nor time. But then two commits are one file, and whoever
// changes the one in place, by whatever tool, changes the other.
func (s *Store) Copy(ctx context.Context, from, key string, size int64, sum uint32) error {
	s.once.Do(s.sweep)
	source, err := s.root.Open(from)
	if err != nil {
		return s.explain(err)
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return s.explain(err)
	}
	if info.Size() != size || !info.Mode().IsRegular() {
		return &manifest.MismatchError{Path: from, Size: size, Sum: "size", Want: fmt.Sprint(size), Got: fmt.Sprint(info.Size())}
	}
	temp, f, err := s.temp(ctx)
	if err != nil {
		return s.explain(err)
	}
	defer f.Close()
	defer s.Delete(ctx, temp)
	if err := s.clone(int(f.Fd()), int(source.Fd())); err != nil {
		if err := copyBytes(ctx, f, source, size); err != nil {
			return s.explain(fmt.Errorf("copying %s: %w", from, err))
		}
	}
	got, err := sumOf(ctx, f, 0, size)
	if err != nil {
		return s.explain(fmt.Errorf("reading the copy of %s: %w", from, err))
	}
	if got != sum {
		return &manifest.MismatchError{Path: from, Size: size, Sum: "crc32c", Want: fmt.Sprintf("%08x", sum), Got: fmt.Sprintf("%08x", got)}
	}
	if err := f.Sync(); err != nil {
		return s.explain(err)
	}
	err = s.link(temp, key)
	if errors.Is(err, fs.ErrExist) {
		if same, _ := s.sums(key, size, sum); same {
			return nil
		}
		return stager.Fail(fs.ErrExist, "%s/%s is there with other content and is left untouched: remove it, or use another directory", s, key)
	}
	return s.explain(err)
}

// copyBytes appends size bytes of source to f, a piece at a time, so that it ends when ctx does. io.CopyN
// uses copy_file_range where the kernel has it for the two.
func copyBytes(ctx context.Context, f, source *os.File, size int64) error {
	const piece = 64 << 20
	for left := size; left > 0; left -= piece {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(left, piece)
		copied, err := io.CopyN(f, source, n)
		if errors.Is(err, io.EOF) || err == nil && copied < n {
			return io.ErrUnexpectedEOF // it was cut short meanwhile
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sumOf returns the CRC32C of n bytes of f from off.
func sumOf(ctx context.Context, f *os.File, off, n int64) (uint32, error) {
	buf := make([]byte, min(n, 256<<10))
	var sum uint32
	for end := off + n; off < end; off += int64(len(buf)) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		buf = buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(buf, off); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, manifest.Castagnoli, buf)
	}
	return sum, nil
}

// identity tells a file from every other that has its name before or after it. A file that another one
// replaces has another inode while both are there; one that is made where another was removed may
// have the same, but not the same time.
func identity(info fs.FileInfo) int64 {
	var inode uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return version(fmt.Appendf(nil, "%d %d %d", inode, info.ModTime().UnixNano(), info.Size()))
}

// Remove removes a file if it is the one that was listed, and the directories that are empty then. A file that is gone is no error; one that a process is at work with is
// syscall.EBUSY, and stays.
//
// The lock makes the comparison and the removal one step for all who write through this package: those
// who replace a file hold it, too, and the rest only make files where there are none.
func (s *Store) Remove(_ context.Context, listed stager.Object) error {
	s.once.Do(s.sweep)
	err := s.removeListed(listed)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for dir := path.Dir(listed.Key); err == nil && dir != "."; dir = path.Dir(dir) {
		if s.root.Remove(dir) != nil {
			break // not empty, or gone
		}
	}
	return s.explain(err)
}

func (s *Store) removeListed(listed stager.Object) error {
	if dir, data := strings.CutSuffix(listed.Key, "/data"); data && strings.HasPrefix(dir, partsDir+"/") {
		// The lock of a file that is written in parts is its journal's.
		release, err := s.hold(dir + "/journal")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			defer release()
		}
	}
	release, err := s.hold(listed.Key)
	if err != nil {
		return err
	}
	defer release()
	info, err := s.root.Lstat(listed.Key)
	if err != nil {
		return err
	}
	if identity(info) != listed.Version {
		return stager.Fail(fs.ErrExist, "%s/%s was replaced by another process and is left untouched", s, listed.Key)
	}
	return s.root.Remove(listed.Key)
}

// hold locks a file that nobody else has locked.
func (s *Store) hold(key string) (release func(), err error) {
	f, err := s.root.OpenFile(key, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		f, err = s.root.Open(key) // a lock on NFS needs a file that is open for writing, elsewhere it does not
	}
	if err != nil {
		return nil, err
	}
	locked, err := s.tryLock(f)
	if err == nil && !locked {
		err = stager.Fail(syscall.EBUSY, "%s/%s is in use by another process and is left untouched", s, key)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
