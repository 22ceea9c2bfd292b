// Package modelfs shows a model as a read-only folder while its bytes are still arriving.
//
// Every file has its true name, size and mode from the first moment. A read waits until its bytes
// are verified, holding no lock and no worker; the wait ends early only when the reader is being
// killed or when the model says that the bytes cannot come. Nothing else becomes an error, because
// an error on a mapped page kills its process with SIGBUS and without a word.
//
// A file has two inodes. The first one is served: the kernel asks this process for every page. The
// second one exists once the file is complete and the kernel offers passthrough: its reads go
// straight to the backing file. A lookup answers with the second one as soon as there is one, and
// while there is none its answer is valid for that one lookup only; so an open that begins after
// completion gets native speed, and what was open before goes on as it was. One inode never has
// opens of both kinds, which the kernel answers with EIO (fuse_file_io_open, linux fs/fuse/iomode.c).
//
// Inode and node numbers follow from the manifest alone. The pages of a served file are in memory
// twice, once as the backing file's and once as this file system's, charged to the reader.
package modelfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/manifest"
)

// Model is what is shown. Its methods are called by many readers at once.
type Model interface {
	Manifest() *manifest.Manifest
	// Wait returns nil when n bytes from off of Manifest().Files[file] are there and verified. An
	// error while ctx lives says that they will not come.
	Wait(ctx context.Context, file int, off, n int64) error
	// Complete reports whether the whole file is there and verified. It never turns back.
	Complete(file int) bool
	// Open returns the backing file, which has the file's full size from the beginning.
	Open(file int) (*os.File, error)
}

const (
	// maxRequest is the size of one read in bytes: larger ones are slower and smaller ones cost a
	// round trip each.
	maxRequest = 1 << 20
	// background is the number of read-ahead requests the kernel keeps in flight; its default of 12
	// lets them block the page that a reader needs now.
	background = 256
	// readAhead is how far the kernel reads ahead, in bytes. Its default of 128 KiB keeps a single
	// small request in flight, which no link with latency forgives.
	readAhead = 16 << 20
)

// fstype is the file system's type in the table of mounts.
const fstype = "fuse.headstart"

// Ours reports whether p is a mount that this package made, in this process or an earlier one.
func Ours(p *mount.Point) bool { return p.Type == fstype }

// Supported returns nil where this process may mount a model, and else an error that wraps
// [mount.ErrUnsupported].
func Supported() error {
	if err := mount.Supported(); err != nil {
		return err
	}
	dev, err := open()
	if err != nil {
		return err
	}
	return unix.Close(dev)
}

func open() (int, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/fuse (%v): %w", err, mount.ErrUnsupported)
	}
	return dev, nil
}

// FS is a mounted model.
type FS struct {
	model  Model
	log    *slog.Logger
	dir    string
	tree   *tree
	files  []file
	server *fuse.Server
	conn   int           // /dev/fuse, a descriptor of our own that tells when the connection is dead
	device uint64        // of the mount, which also names its FUSE connection
	done   chan struct{} // closed when nobody uses the file system any more

	passthrough atomic.Bool // the kernel still accepts backing files
	counters    counters
}

// Mount shows m at dir, an empty folder. The caller ends it with Unmount or Close.
// Without root or /dev/fuse the error wraps [mount.ErrUnsupported].
func Mount(dir string, m Model, log *slog.Logger) (*FS, error) {
	f := &FS{model: m, log: log, dir: dir, tree: newTree(m.Manifest()), files: make([]file, len(m.Manifest().Files)), done: make(chan struct{})}
	dev, err := attach(dir)
	if err != nil {
		return nil, err
	}
	if err := f.serve(dev); err != nil {
		return nil, errors.Join(fmt.Errorf("serving %s: %w", dir, err), mount.Unmount(dir))
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("looking at %s: %w", dir, err), mount.Unmount(dir))
	}
	f.device = st.Dev
	if err := f.tune(); err != nil {
		log.Warn("reading ahead is limited to the kernel's default: reads of models that still load will be slow", "dir", dir, "err", err)
	}
	return f, nil
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

// serve answers the kernel on dev, which it takes over, until nobody uses the mount any more.
func (f *FS) serve(dev int) (err error) {
	if f.conn, err = unix.FcntlInt(uintptr(dev), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		unix.Close(dev)
		return err
	}
	f.server, err = fuse.NewServer(&kernel{RawFileSystem: fuse.NewDefaultRawFileSystem(), FS: f}, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{
		Name:                     "headstart",
		MaxWrite:                 maxRequest,
		MaxBackground:            background,
		DisableSplice:            true, // a pipe holds 1 MiB, an answer is a header longer
		ExplicitDataCacheControl: true, // bytes never change
		Logger:                   slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
	})
	if err != nil {
		unix.Close(f.conn)
		return err
	}
	f.passthrough.Store(f.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH != 0)
	go func() {
		defer close(f.done)
		f.server.Serve()
		unix.Close(f.conn)
		for i := range f.files {
			f.files[i].unmap()
		}
	}()
	return nil
}

// tune raises the read-ahead, which must be done before the first open, and answers the kernel's
// first poll request: the Go runtime polls what it opens without giving up its thread, so a process
// that reads its own mount could otherwise wait for itself.
func (f *FS) tune() error {
	if fd, err := unix.Open(filepath.Join(f.dir, f.model.Manifest().Files[0].Path), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		unix.Close(fd)
		f.counters.servedOpens.Store(0)
		f.counters.passthroughOpens.Store(0)
	}
	knob := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(f.device), unix.Minor(f.device))
	return os.WriteFile(knob, fmt.Appendf(nil, "%d", readAhead>>10), 0)
}

// Dir returns where the model is mounted.
func (f *FS) Dir() string { return f.dir }

// Passthrough reports whether complete files are read without this process.
func (f *FS) Passthrough() bool { return f.passthrough.Load() }

// Unmount takes the model away from the folder. Whoever has it open, or mounted elsewhere, goes on.
func (f *FS) Unmount() error { return mount.Unmount(f.dir) }

// Shown reports whether p is a mount of this file system, wherever it is.
func (f *FS) Shown(p *mount.Point) bool {
	return p.Device == fmt.Sprintf("%d:%d", unix.Major(f.device), unix.Minor(f.device))
}

// Done is closed when the model is unmounted everywhere and its last user has gone.
func (f *FS) Done() <-chan struct{} { return f.done }

// Close takes the model away from everybody: reads that wait end with an error, later ones too.
// Files opened with passthrough go on. It fails where the kernel does not end the connection in time.
func (f *FS) Close() error {
	f.settle()
	err := errors.Join(abort(f.device), f.Unmount())
	if err != nil {
		return err
	}
	select {
	case <-f.done:
		return nil
	case <-time.After(ending):
		return fmt.Errorf("%s: the kernel has not ended the connection after %s", f.dir, ending)
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
		if outstanding(f.device) <= wanting {
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

// outstanding returns the number of requests that the kernel has no answer to; 0 where it cannot tell.
func outstanding(device uint64) int64 {
	waiting, err := connection(device, "waiting", unix.O_RDONLY)
	if err != nil {
		return 0
	}
	defer unix.Close(waiting)
	b := make([]byte, 32)
	n, err := unix.Read(waiting, b)
	if err != nil {
		return 0
	}
	count, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		return 0
	}
	return count
}

// abort ends a FUSE connection.
func abort(device uint64) error {
	knob, err := connection(device, "abort", unix.O_WRONLY)
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

// connection opens a file of a connection in the kernel's control file system, which is mounted for
// the moment and nowhere: a connection whose mounts are detached cannot be reached by a path.
func connection(device uint64, name string, mode int) (int, error) {
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
