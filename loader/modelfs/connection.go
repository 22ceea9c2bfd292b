package modelfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

func open() (int, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/fuse (%v): %w", err, mount.ErrUnsupported)
	}
	return dev, nil
}

// attach opens a connection and mounts it. It is done here and not by the library, which would let
// child processes inherit the descriptor: the mount would then outlive this process and hang.
func attach(dir string) (int, error) {
	dev, err := open()
	if err != nil {
		return -1, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		dev, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount("headstart", dir, fstype, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(dev)
		if errors.Is(err, fs.ErrPermission) {
			err = mount.ErrUnsupported
		}
		return -1, fmt.Errorf("mounting at %s: %w", dir, err)
	}
	return dev, nil
}

// request reads the kernel's INIT, the first of a connection's messages.
func request(dev int) ([]byte, error) {
	b := make([]byte, bufferSize)
	for {
		n, err := unix.Read(dev, b)
		if err == nil {
			return b[:n], nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("reading INIT: %w", err)
		}
	}
}

// connect makes ready to serve dev, which it takes over, and returns the answer to INIT.
func (f *FS) connect(dev int, init []byte) (answer []byte, err error) {
	f.server = newServer(f, dev)
	if answer, err = f.server.greet(init); err != nil {
		return nil, err
	}
	out := (*fuse.InitOut)(unsafe.Pointer(&answer[headerSize]))
	f.passthrough.Store(out.Flags64()&fuse.CAP_PASSTHROUGH != 0)
	return answer, nil
}

// answer serves until nobody uses the file system any more.
func (f *FS) answer() {
	defer close(f.done)
	f.server.serve()
	unix.Close(f.server.conn)
	for i := range f.files {
		f.files[i].unmap()
	}
	if err := f.keep.Drop(f.id); err != nil {
		f.log.Warn("a connection that has ended is still kept", "dir", f.dir, "err", err)
	}
}

// ending is how long Close waits for the kernel to end a connection, which takes it milliseconds.
const ending = 10 * time.Second

// settle waits a moment for answers that are on their way: an abort would take them from readers
// whose bytes are there. Reads that wait for a chunk do not count, unless all chunks are there: then
// they only have not noticed yet.
func (f *FS) settle() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		wanting := f.counters.waiting.Load()
		if f.complete() {
			wanting = 0
		}
		if n, err := outstanding(f.device); err != nil || n <= wanting {
			return
		}
		<-tick.C
	}
}

// complete reports whether every file is.
func (f *FS) complete() bool {
	for i := range f.files {
		if !f.model.Complete(i) {
			return false
		}
	}
	return true
}

// outstanding returns the number of requests that the kernel has no answer to.
func outstanding(device uint64) (int64, error) {
	waiting, err := control(device, "waiting", unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(waiting)
	b := make([]byte, 32)
	n, err := unix.Read(waiting, b)
	if err != nil {
		return 0, fmt.Errorf("reading the connection's number of requests: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
}

// abort ends a FUSE connection.
func abort(device uint64) error {
	knob, err := control(device, "abort", unix.O_WRONLY)
	if errors.Is(err, syscall.ENOENT) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	defer unix.Close(knob)
	_, err = unix.Write(knob, []byte("1"))
	return err
}

// control opens a file of a connection in the kernel's control file system, which is mounted for
// the moment and nowhere: a connection whose mounts are detached cannot be reached by a path.
func control(device uint64, name string, mode int) (int, error) {
	fd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening fusectl: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, fmt.Errorf("creating fusectl: %w", err)
	}
	root, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mounting fusectl: %w", err)
	}
	defer unix.Close(root)
	file, err := unix.Openat(root, fmt.Sprintf("%d/%s", unix.Minor(device), name), mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the connection's %s: %w", name, err)
	}
	return file, nil
}

// dead reports whether the kernel has ended a connection.
func dead(conn int) bool {
	poll := []unix.PollFd{{Fd: int32(conn)}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}
