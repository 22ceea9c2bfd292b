package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Open reads a range of a file that is still the one that Resolve found.
func (s *Source) Open(_ context.Context, _ manifest.Model, f stager.RemoteFile, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	e, ok := s.of[f.Path]
	s.mu.Unlock()
	if !ok {
		return nil, stager.Fail(fs.ErrNotExist, "%s has no file %.200q", s.dir, f.Path)
	}
	file, err := s.open(f.Path, e)
	if err != nil {
		return nil, err
	}
	return &section{io.NewSectionReader(file, off, n), s, f.Path, e, file}, nil
}

// section is a range of a file. Where it ends it looks whether the file is still the same.
type section struct {
	*io.SectionReader
	source *Source
	path   string
	entry  entry
	file   *os.File
}

func (r *section) Read(p []byte) (int, error) {
	n, err := r.SectionReader.Read(p)
	if at, _ := r.Seek(0, io.SeekCurrent); err == io.EOF || at == r.Size() {
		if changed := r.source.unchanged(r.path, r.entry, r.file); changed != nil {
			return 0, changed
		}
	}
	if err != nil && err != io.EOF {
		err = r.source.explain(r.path, err)
	}
	return n, err
}

func (r *section) Close() error { return r.file.Close() }

// open opens a file that must be the one that was found.
func (s *Source) open(path string, e entry) (*os.File, error) {
	// Not to wait for a pipe, and not to follow a link, that has come in its place.
	f, err := os.OpenFile(e.name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, s.changed(path)
	}
	if err != nil {
		return nil, s.explain(path, err)
	}
	if err := s.unchanged(path, e, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Source) unchanged(path string, e entry, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return s.explain(path, err)
	}
	if identify(info) != e.id {
		return s.changed(path)
	}
	return nil
}

func (s *Source) changed(path string) error {
	return stager.Fail(manifest.ErrInvalid, "%s/%s changes while it is being staged: run again when nothing writes to it", s.dir, path)
}

func (s *Source) explain(path string, err error) error {
	switch {
	case os.IsPermission(err):
		return stager.Fail(fs.ErrPermission, "%s may not be read by this user: give it to this user, or run as its owner", filepath.Join(s.dir, path))
	case os.IsNotExist(err):
		return stager.Fail(manifest.ErrInvalid, "%s was removed while it was being staged: run again when nothing writes to the folder", filepath.Join(s.dir, path))
	}
	return fmt.Errorf("%s: %w", filepath.Join(s.dir, path), err)
}

func identify(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		panic("dir: a file without a stat")
	}
	return identity{dev: uint64(st.Dev), ino: st.Ino, size: info.Size(), modified: info.ModTime().UTC()}
}

// identity changes when a file is written to or replaced.
type identity struct {
	dev, ino uint64
	size     int64     // bytes
	modified time.Time // UTC
}
