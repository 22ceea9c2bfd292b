package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxPath is the length of a socket's path in bytes, see unix(7).
const maxPath = 107

// Listen opens a unix socket at path that only this user can connect to. Folders that are missing
// above it are made, for this user. What a process that has
// died left there is replaced; a socket on which somebody answers is EBUSY, anything else that is
// there is fs.ErrExist.
func Listen(path string) (net.Listener, error) {
	if err := vacant(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("a folder for the control socket: %w", err)
	}
	// It gets its mode in a folder that nobody else can enter and takes its place with it.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("a folder for the control socket: %w", err)
	}
	defer os.RemoveAll(dir)
	private := filepath.Join(dir, "s")
	if len(path) > maxPath || len(private) > maxPath {
		return nil, fmt.Errorf("control socket %s: the path is too long for a socket: use one of at most %d bytes", path, maxPath-len(private)+len(filepath.Dir(path))+1)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	s, err := place(l, private, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("control socket %s: %w", path, err), l.Close())
	}
	return s, nil
}

func place(l net.Listener, private, path string) (*socket, error) {
	if err := os.Chmod(private, 0o600); err != nil {
		return nil, err
	}
	info, err := os.Lstat(private)
	if err != nil {
		return nil, err
	}
	return &socket{Listener: l, path: path, info: info}, os.Rename(private, path)
}

// vacant reports why path cannot be taken.
func vacant(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return &nodeError{fmt.Sprintf("control socket %s: something that is not a socket is there: give another path", path), fs.ErrExist}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		conn.Close()
	}
	return &nodeError{fmt.Sprintf("control socket %s: another node answers there: stop it or give another path", path), syscall.EBUSY}
}

// socket is a listener that takes its own path with it, and nobody else's.
type socket struct {
	net.Listener
	path string
	info fs.FileInfo
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	if st, statErr := os.Lstat(s.path); statErr == nil && os.SameFile(st, s.info) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}
