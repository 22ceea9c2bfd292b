package file

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/stager"
)

const tempPrefix = "put-"

// Put writes a small file, if the one that is there has the given version.
func (s *Store) Put(ctx context.Context, key string, expected int64, data ...[]byte) error {
	s.once.Do(s.sweep)
	temp, f, err := s.temp(ctx)
	if err != nil {
		return s.explain(err)
	}
	defer f.Close()
	defer s.Delete(ctx, temp)
	for _, b := range data {
		if _, err := f.Write(b); err != nil {
			return s.explain(err)
		}
	}
	if err := f.Sync(); err != nil {
		return s.explain(err)
	}
	if expected == 0 {
		err = s.link(temp, key)
	} else {
		err = s.replace(ctx, temp, key, expected)
	}
	if errors.Is(err, fs.ErrExist) {
		same, err := s.holds(key, data)
		if errors.Is(err, fs.ErrNotExist) {
			return stager.Fail(fs.ErrExist, "%s/%s was removed by somebody else", s, key)
		}
		if err != nil || same {
			return s.explain(err)
		}
		return stager.Fail(fs.ErrExist, "%s/%s is there with other content and is left untouched: remove it, or use another directory", s, key)
	}
	return s.explain(err)
}

// temp makes a file that nobody else uses. Its lock tells a file in use from one that a killed process
// has left.
func (s *Store) temp(ctx context.Context) (string, *os.File, error) {
	for {
		if ctx.Err() != nil {
			return "", nil, context.Cause(ctx)
		}
		if err := s.mkdirs(partsDir); err != nil {
			return "", nil, err
		}
		name := partsDir + "/" + tempPrefix + rand.Text()
		f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory was empty, and another process has just removed it
		}
		if err != nil {
			return "", nil, err
		}
		locked, err := s.tryLock(f)
		if locked && s.names(name, f) {
			return name, f, nil
		}
		f.Close()
		if err != nil {
			s.root.Remove(name)
			s.prune(partsDir)
			return "", nil, err
		}
		// It was swept away between the two calls.
	}
}

// sweep removes what killed processes left.
func (s *Store) sweep() {
	entries, err := fs.ReadDir(s.root.FS(), partsDir)
	if err != nil {
		return // nothing is there
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		name := partsDir + "/" + e.Name()
		f, err := s.root.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if locked, _ := s.tryLock(f); locked {
			s.root.Remove(name)
		}
		f.Close()
	}
	s.prune(partsDir)
}

// link gives the file at temp, which is on the medium, its final name, if that is free.
func (s *Store) link(temp, key string) error {
	dir := path.Dir(key)
	var err error
	for tries := 1; ; tries++ {
		if err := s.mkdirs(dir); err != nil {
			return err
		}
		err = s.root.Link(temp, key)
		if _, absent := s.root.Lstat(temp); !errors.Is(err, fs.ErrNotExist) || absent != nil || tries == 100 {
			break
		} // else another process found the directory empty, and has just removed it
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		err = s.rename(temp, key) // a file system without hard links
	}
	if err != nil {
		return err
	}
	return s.syncDir(dir)
}

// rename is link for file systems without hard links. Two processes that come between each other's two
// calls would write the same name, with the same bytes where both stage the same commit.
func (s *Store) rename(temp, key string) error {
	_, err := s.root.Lstat(key)
	if err == nil {
		return fs.ErrExist
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.root.Rename(temp, key)
}

// replace gives the file at temp the name of a file with the given version. The lock of the old file
// makes the comparison and the rename one step.
func (s *Store) replace(ctx context.Context, temp, key string, expected int64) error {
	for {
		old, err := s.root.OpenFile(key, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return fs.ErrExist // it was removed by somebody else
		}
		if err != nil {
			return err
		}
		done, err := func() (bool, error) {
			defer old.Close()
			if err := s.lock(ctx, old, key); err != nil {
				return true, err
			}
			if !s.names(key, old) {
				return false, nil
			}
			data, err := io.ReadAll(old)
			if err != nil {
				return true, err
			}
			if version(data) != expected {
				return true, fs.ErrExist
			}
			if err := s.root.Rename(temp, key); err != nil {
				return true, err
			}
			return true, s.syncDir(path.Dir(key))
		}()
		if done {
			return err
		}
	}
}

// names reports whether the name leads to the open file.
func (s *Store) names(name string, f *os.File) bool {
	a, err := s.root.Stat(name)
	if err != nil {
		return false
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b)
}

// holds reports whether the file at key has exactly this content.
func (s *Store) holds(key string, data [][]byte) (bool, error) {
	f, err := s.root.Open(key)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, want := range data {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, want) {
			return false, nil
		}
	}
	n, err := f.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, io.EOF), nil
}

// lock waits for the exclusive lock of f, which stands for key. Should the process that has it die, the
// lock is free.
func (s *Store) lock(ctx context.Context, f *os.File, key string) error {
	const every = 50 * time.Millisecond
	timer := time.NewTimer(every)
	defer timer.Stop()
	for tries := 0; ; tries++ {
		if locked, err := s.tryLock(f); locked || err != nil {
			return err
		}
		if tries == 20 && s.Log != nil {
			s.Log.Warn("another process writes this file: waiting for it", "bucket", s.String(), "key", key)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			timer.Reset(every)
		}
	}
}

// tryLock reports whether it got the exclusive lock of f. Only a lock that another process has is no error:
// Lustre mounted with noflock and NFS without a lock daemon refuse every lock, and waiting would not end.
func (s *Store) tryLock(f *os.File) (bool, error) {
	for {
		err := s.flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, stager.Fail(syscall.EOPNOTSUPP, "%s has no file locks (%v): mount it with -o flock, or use another directory", s, err)
		}
	}
}
