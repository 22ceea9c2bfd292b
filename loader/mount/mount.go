// Package mount makes a folder appear at a second path, read-only, and takes it away again.
//
// A target is an absolute, clean path without symbolic links. It may be missing (its parent may
// not) or an empty folder; whatever else is there is somebody's and stays as it is: the error wraps
// [fs.ErrExist]. A mount becomes visible in one step and is read-only from that step on.
//
// Mounting needs CAP_SYS_ADMIN; without it the errors wrap [ErrUnsupported].
package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnsupported says that this process may not mount here.
var ErrUnsupported = errors.New("mounting needs root (CAP_SYS_ADMIN) and Linux 5.12 or newer")

// Supported returns nil where this process may mount, and else an error that wraps [ErrUnsupported].
func Supported() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return unsupported(err)
	}
	return unix.Close(tree)
}

// CheckTarget reports what is wrong with the spelling of target.
func CheckTarget(target string) error {
	switch {
	case !filepath.IsAbs(target):
		return refuse(fs.ErrInvalid, "target %q is not an absolute path", target)
	case filepath.Clean(target) != target || target == "/" || len(target) >= unix.PathMax:
		return refuse(fs.ErrInvalid, "target %q is not a clean path", target)
	}
	if strings.ContainsRune(target, 0) {
		return refuse(fs.ErrInvalid, "target %q is not a path", target)
	}
	return nil
}

// Prepare makes sure that target is an empty folder on which nothing is mounted, and reports
// whether it had to make it. Its parent must exist.
func Prepare(target string) (created bool, err error) {
	if err := CheckTarget(target); err != nil {
		return false, err
	}
	p, err := At(target)
	if err != nil {
		return false, err
	}
	if p != nil {
		return false, refuse(fs.ErrExist, "target %s is a mount of %s (%s) that is not headstart's: unmount it, or give another target", target, p.Source, p.Type)
	}
	parent, err := open(filepath.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false, within(target, err)
	}
	defer unix.Close(parent)
	err = unix.Mkdirat(parent, filepath.Base(target), 0o755)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("making target %s: %w", target, err)
	}
	return false, empty(target)
}

// empty reports why target is not an empty folder.
func empty(target string) error {
	fd, err := open(target, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, syscall.ENOTDIR) {
		return refuse(fs.ErrExist, "target %s is a file: give a folder that is empty or does not exist", target)
	}
	if err != nil {
		return fmt.Errorf("target %s: %w", target, err)
	}
	dir := os.NewFile(uintptr(fd), target)
	defer dir.Close()
	if names, _ := dir.Readdirnames(1); len(names) > 0 {
		return refuse(fs.ErrExist, "target %s is a folder with files in it: give one that is empty or does not exist", target)
	}
	return nil
}

// Bind makes source appear at target, which [Prepare] has made ready. The tree is cloned, made
// read-only and only then attached, so there is no moment at which target can be written.
func Bind(source, target string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("binding %s: %w", source, unsupported(err))
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("binding %s read-only: %w", source, unsupported(err))
	}
	return attach(tree, target)
}

// attach makes a clone of mounts appear at target.
func attach(tree int, target string) error {
	at, err := open(target, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("target %s: %w", target, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting at %s: %w", target, unsupported(err))
	}
	return nil
}

// Unmount takes away what is mounted on top at target, at once where nobody uses it, else when its
// last user is done. It is not an error that nothing is mounted or that target does not exist.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, syscall.EBUSY) {
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	switch {
	case err == nil, errors.Is(err, syscall.EINVAL), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("unmounting %s: %w", target, unsupported(err))
}

// open opens a path in which nothing is a symbolic link, and returns a descriptor.
func open(path string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if errors.Is(err, syscall.ELOOP) {
		return -1, refuse(fs.ErrInvalid, "%s contains a symbolic link: give the path that it leads to", path)
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// within explains that the folder in which target was to be made cannot be used.
func within(target string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(fs.ErrNotExist, "target %s: the folder %s does not exist: make it first", target, filepath.Dir(target))
	}
	return fmt.Errorf("target %s: %w", target, err)
}

// refusal is an error of a class that callers branch on, with a text of its own.
type refusal struct {
	text  string
	class error
}

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return e.class }

func refuse(class error, format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...), class}
}

func unsupported(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		return ErrUnsupported
	}
	return err
}
