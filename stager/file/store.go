// Package file is the writing side of a bucket that is a directory: a local disk, NFS, Managed Lustre,
// a mounted disk.
//
// An object is a file at its key, and appears by a hard link or a rename of a file that is complete and
// on the medium. A file that goes up in parts is one preallocated file below .headstart/parts with a
// journal beside it; the journal's lock makes a second process wait.
package file

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// partsDir is the only place where something incomplete lies.
const partsDir = manifest.Private + "parts"

// Store is a directory as a bucket.
type Store struct {
	Log *slog.Logger // optional

	dir  string
	root *os.Root // names cannot lead out of it, by symbolic links neither
	once sync.Once

	flock     func(fd, how int) error // unix.Flock
	fallocate func(fd int, mode uint32, off, n int64) error
	clone     func(to, from int) error // unix.IoctlFileClone
}

// New opens the directory, which must exist.
func New(dir string) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stager.Fail(fs.ErrNotExist, "bucket file://%s: the directory does not exist: create it, or mount what it is on", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("bucket file://%s: %w", dir, err)
	}
	return &Store{dir: dir, root: root, flock: unix.Flock, fallocate: unix.Fallocate, clone: unix.IoctlFileClone}, nil
}

// Close releases the directory, without what processes have left there that were killed meanwhile.
func (s *Store) Close() error {
	s.sweep()
	return s.root.Close()
}

func (s *Store) String() string { return "file://" + s.dir }

// Get returns a small file's content. Its version is a hash of the content.
func (s *Store) Get(_ context.Context, key string, limit int64) ([]byte, int64, error) {
	f, err := s.root.Open(key)
	if err != nil {
		return nil, 0, s.explain(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, 0, s.explain(err)
	}
	if int64(len(data)) > limit {
		return nil, 0, stager.Fail(manifest.ErrInvalid, "%s/%s has more than %d bytes", s, key, limit)
	}
	return data, version(data), nil
}

func version(data []byte) int64 {
	sum := sha256.Sum256(data)
	return int64(binary.BigEndian.Uint64(sum[:])>>1 | 1)
}

// Open reads a range of a file.
func (s *Store) Open(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	f, err := s.root.Open(key)
	if err != nil {
		return nil, s.explain(err)
	}
	if n < 0 {
		n = math.MaxInt64 - off
	}
	return section{io.NewSectionReader(f, off, n), f}, nil
}

type section struct {
	io.Reader
	io.Closer
}

// List walks the directory that prefix names. It knows no sums.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[stager.Object, error] {
	return func(yield func(stager.Object, error) bool) {
		err := fs.WalkDir(s.root.FS(), strings.TrimSuffix(prefix, "/"), func(key string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed by another process, or never there
			}
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if d.IsDir() {
				return nil
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !yield(stager.Object{Key: key, Size: info.Size(), Created: info.ModTime(), Version: identity(info)}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(stager.Object{}, s.explain(err))
		}
	}
}

// Delete removes a file, and below .headstart/parts the directories that are empty then.
func (s *Store) Delete(_ context.Context, key string) error {
	if err := s.root.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.explain(err)
	}
	s.prune(path.Dir(key))
	return nil
}

func (s *Store) prune(dir string) {
	for ; partsDir == dir || strings.HasPrefix(partsDir, dir+"/") || strings.HasPrefix(dir, partsDir+"/"); dir = path.Dir(dir) {
		if s.root.Remove(dir) != nil {
			return // not empty, or gone
		}
	}
}

// mkdirs makes a directory and its parents last. Other processes remove those that they find empty.
func (s *Store) mkdirs(dir string) error {
	for tries := 1; ; tries++ {
		err := s.mkdirsOnce(dir)
		if !errors.Is(err, fs.ErrNotExist) || tries == 100 {
			return err
		}
	}
}

func (s *Store) mkdirsOnce(dir string) error {
	for i := range len(dir) + 1 {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		err := s.root.Mkdir(dir[:i], 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.syncDir(path.Dir(dir[:i])); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) syncDir(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some network file systems have no fsync of a directory.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// explain says what a person can do about an error of the file system.
func (s *Store) explain(err error) error {
	for _, e := range []struct {
		class error
		text  string
	}{
		{syscall.ENOSPC, "no space is left" + s.free() + ": make room, or use another directory"},
		{syscall.EDQUOT, "the disk quota is used up: make room, or use another directory"},
		{syscall.EROFS, "the file system is read-only: mount it writable, or use another directory"},
		{syscall.ENOTDIR, "a file is where a directory is needed: remove it, or use another directory"},
		{fs.ErrPermission, "permission denied: make the directory writable for this user"},
	} {
		if errors.Is(err, e.class) {
			return fmt.Errorf("%s: %w", e.text, err)
		}
	}
	return err
}

func (s *Store) free() string {
	var st unix.Statfs_t
	if unix.Statfs(s.dir, &st) != nil {
		return ""
	}
	return fmt.Sprintf(" (%.1f MB are free)", float64(st.Bavail)*float64(st.Bsize)/1e6)
}
