package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

// place is the temporary folder, with everything that is made or mounted below it.
type place struct {
	dir  string
	lock *os.File // held as long as the demo lives

	tmpfs string // where one is mounted for the cache, "" for none
	cache string // the node's; below dir, unless the user named another place
	other string // a folder of the demo's elsewhere, "" for none
}

// What is in the folder.
const (
	prefix     = "headstart-demo-"
	lockFile   = "lock"
	bucketDir  = "bucket"
	mediumDir  = "cache"
	sumsFile   = "sha256sums"
	socketFile = "node.sock"
	nodeLog    = "node.log"
)

type writer = io.Writer

// newPlace makes the folder below parent, and removes what killed demos of this user left there.
func newPlace(parent string) (*place, error) {
	parent, err := filepath.EvalSymlinks(parent) // nothing is published through a link
	if err == nil {
		parent, err = filepath.Abs(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("the temporary directory: %w", err)
	}
	sweep(parent)
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("making a temporary folder: %w", err)
	}
	p := &place{dir: dir}
	if p.lock, err = locked(p.path("new")); err == nil {
		err = os.Rename(p.path("new"), p.path(lockFile)) // it appears locked
	}
	for _, sub := range []string{bucketDir, mediumDir} {
		if err == nil {
			err = os.Mkdir(p.path(sub), 0o700)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.remove())
	}
	return p, nil
}

func (p *place) path(elem ...string) string {
	return filepath.Join(append([]string{p.dir}, elem...)...)
}

func (p *place) write(name string, to func(writer) error) error {
	f, err := os.Create(p.path(name))
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	return errors.Join(to(b), b.Flush(), f.Close())
}

// remove unmounts and removes everything. What cannot be unmounted is left, for removing would reach through it.
func (p *place) remove() error {
	err := removeTree(p.dir)
	if p.other != "" {
		err = errors.Join(err, removeTree(p.other))
	}
	if p.lock != nil {
		err = errors.Join(err, p.lock.Close())
	}
	return err
}

func removeTree(dir string) error {
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

// sweep removes the folders of this user's demos that were killed. What cannot be removed stays: it is
// not this demo's.
func sweep(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, lockFile)); err != nil {
			continue
		}
		lock, err := locked(filepath.Join(dir, lockFile))
		if err != nil {
			continue // its demo is alive
		}
		_ = removeTree(dir)
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
