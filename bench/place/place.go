// Package place makes the temporary folder of a demo or a benchmark, and makes sure that it goes, with
// whatever is mounted below it: at the end by [Dir.Remove], and after SIGKILL by the next one that is
// made at the same place.
package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

// LockFile is in every such folder, and locked as long as its maker lives.
const LockFile = "lock"

// Dir is a temporary folder.
type Dir struct {
	path string
	lock *os.File
}

// New makes a folder PREFIX* in parent, and removes what killed makers of this user left there.
func New(parent, prefix string) (*Dir, error) {
	parent, err := filepath.EvalSymlinks(parent) // nothing is mounted through a link
	if err == nil {
		parent, err = filepath.Abs(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("the temporary directory: %w", err)
	}
	Sweep(parent, prefix)
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("making a temporary folder: %w", err)
	}
	d := &Dir{path: path}
	if d.lock, err = locked(d.Path("new")); err == nil {
		err = os.Rename(d.Path("new"), d.Path(LockFile)) // it appears locked
	}
	if err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// Path returns the path of something in the folder.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Remove unmounts and removes everything. What cannot be unmounted is left, for removing would reach through it.
func (d *Dir) Remove() error {
	err := RemoveTree(d.path)
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// RemoveTree removes a folder with whatever is mounted below it.
func RemoveTree(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return fmt.Errorf("%s stays, something in it cannot be unmounted: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the temporary folder: %w", err)
	}
	return nil
}

// unmountBelow unmounts what is mounted below dir, the last mount first.
func unmountBelow(dir string) error {
	table, err := mount.Table()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(table) {
		if !strings.HasPrefix(m.Target, dir+"/") {
			continue
		}
		if err := mount.Unmount(m.Target); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes the folders PREFIX* in parent whose makers, this user's, were killed. What cannot be
// removed stays: it is nobody's here.
func Sweep(parent, prefix string) {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, LockFile)); err != nil {
			continue
		}
		lock, err := locked(filepath.Join(dir, LockFile))
		if err != nil {
			continue // its maker is alive
		}
		_ = RemoveTree(dir)
		lock.Close()
	}
}

// locked opens or makes a file and locks it; the lock goes with the process.
func locked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
