package mount

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BindInside makes dir appear at target, which [Prepare] has made ready, and source in the place of
// the folder inside of it, a relative path. Both are read-only and appear in one step.
//
// The kernel clones a tree of mounts in one step and attaches it in one step, but mounts nothing onto
// a clone before 6.15. So source is mounted inside dir itself for the moment: only one call at a time
// may use a dir. The clone is made private before that ends, or the end would reach the clone too
// where dir's mount is shared.
func BindInside(dir, source, inside, target string) (err error) {
	place := filepath.Join(dir, inside)
	if err := Bind(source, place); err != nil {
		return err
	}
	tree, err := cloneTree(dir)
	if err := errors.Join(err, Unmount(place)); err != nil {
		if tree >= 0 {
			unix.Close(tree)
		}
		return err
	}
	defer unix.Close(tree)
	return attach(tree, target)
}

// cloneTree returns a private read-only clone of dir with what is mounted in it.
func cloneTree(dir string) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("binding %s: %w", dir, unsupported(err))
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("binding %s read-only: %w", dir, unsupported(err))
	}
	return tree, nil
}
