// Package file reads a bucket that is a directory: a local disk, Managed Lustre, NFS, a disk that was
// made for it. An object is the file whose path below the directory is its key.
//
// It reads with pread, straight into the slice it is given, as many reads at once as the caller has
// streams, and past the page cache where that is cheaper. A read that hangs in the kernel cannot be
// cut off.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// Source is a directory. It implements [fetch.Source].
type Source struct {
	dir  string
	root *os.Root
}

// New opens a directory. The error wraps fs.ErrNotExist if there is none.
func New(dir string) (*Source, error) {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, fetch.Fail(fs.ErrNotExist, "bucket file://%s: it is not a directory", dir)
	}
	root, err := os.OpenRoot(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fetch.Fail(fs.ErrNotExist, "bucket file://%s: there is no such directory", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fetch.Fail(fs.ErrPermission, "bucket file://%s: this user may not read the directory", dir)
	case err != nil:
		return nil, fmt.Errorf("bucket file://%s: %w", dir, err)
	}
	return &Source{dir: dir, root: root}, nil
}

// Close closes the directory.
func (s *Source) Close() error { return s.root.Close() }

func (s *Source) String() string { return "file://" + s.dir }

// object is one range of a file.
type object struct {
	ctx    context.Context
	file   *os.File
	off    int64
	align  int64 // of reads past the page cache; 0: none
	direct bool  // what the descriptor is set to
}

// Open implements [fetch.Source]. What it returns is a [fetch.StraightReader].
func (s *Source) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	f, err := s.open(key)
	if err != nil {
		return nil, err
	}
	return &object{ctx: ctx, file: f, off: off, align: canDirect(f, off, n)}, nil
}

func (o *object) Read(p []byte) (int, error) {
	if err := o.live(); err != nil {
		return 0, err
	}
	if o.direct {
		control(o.file, func(fd int) { _ = o.setDirect(fd, false) }) // if it fails, so does the read
	}
	return o.moved(o.file.ReadAt(p, o.off))
}

func (o *object) live() error {
	if o.ctx.Err() != nil {
		return context.Cause(o.ctx)
	}
	return nil
}

// moved notes what a read gave.
func (o *object) moved(n int, err error) (int, error) {
	o.off += int64(n)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (o *object) Close() error { return o.file.Close() }

func (s *Source) open(key string) (*os.File, error) {
	// A named pipe would block the open for ever, so the kind is looked at first.
	st, err := s.root.Stat(filepath.FromSlash(key))
	if err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, s.explain(key, err)
	}
	f, err := s.root.Open(filepath.FromSlash(key))
	if err != nil {
		return nil, s.explain(key, err)
	}
	return f, nil
}

func (s *Source) explain(key string, err error) error {
	var p *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fetch.Fail(fs.ErrNotExist, "no file %s in %s", key, s)
	case errors.Is(err, fs.ErrPermission):
		return fetch.Fail(fs.ErrPermission, "this user may not read %s in %s", key, s)
	case errors.As(err, &p):
		return fmt.Errorf("%s in %s: %w", key, s, p.Err)
	}
	return fmt.Errorf("%s in %s: %w", key, s, err)
}

// Get implements [fetch.Source].
func (s *Source) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	f, err := s.open(key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, s.explain(key, err)
	}
	if int64(len(b)) > limit {
		return nil, fetch.Fail(manifest.ErrInvalid, "%s in %s is longer than %d bytes", key, s, limit)
	}
	return b, nil
}

// List implements [fetch.Source]. Keys come in the order of their path's segments.
func (s *Source) List(ctx context.Context, prefix string) iter.Seq2[fetch.Object, error] {
	return func(yield func(fetch.Object, error) bool) {
		// Only the directory that the prefix ends in is walked: its parents' other children cannot match.
		start := path.Dir(prefix + "x")
		err := fs.WalkDir(s.root.FS(), start, func(name string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, fs.ErrNotExist):
				return nil // nothing there, or gone since its directory was read
			case err != nil:
				return err
			case d.IsDir() && !strings.HasPrefix(name+"/", prefix) && !strings.HasPrefix(prefix, name+"/") && name != ".":
				return fs.SkipDir
			case !d.Type().IsRegular() || !strings.HasPrefix(name, prefix):
				return nil
			}
			st, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !yield(fetch.Object{Key: name, Size: st.Size()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(fetch.Object{}, s.explain(prefix, err))
		}
	}
}
