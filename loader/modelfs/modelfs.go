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
// The process that serves a mount must not touch it: if it were killed while a thread of it waits for
// an answer that only it can give, that thread would never end, and the connection neither.
//
// Inode and node numbers follow from the manifest alone, and answers depend on nothing but them and
// the numbers of the backing files. So a process that gets the connection's descriptor, see [Keeper],
// goes on where one that died has stopped, and readers have waited a bit longer and seen nothing.
//
// The pages of a served file are in memory
// twice, once as the backing file's and once as this file system's, charged to the reader.
package modelfs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

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
	// background is the number of reads that the kernel has in flight, by all readers together: those
	// through the page cache all count as read ahead. When so many wait for chunks, all others do too,
	// also those whose bytes are there. One that waits costs 12 KiB of memory here and no thread.
	background = 8192
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

// FS is a mounted model.
type FS struct {
	model  Model
	keep   Keeper
	id     string // the keeper's name for the connection
	log    *slog.Logger
	dir    string
	tree   *tree
	files  []file
	server *server
	device uint64        // of the mount, which also names its FUSE connection
	done   chan struct{} // closed when nobody uses the file system any more

	passthrough atomic.Bool // the kernel still accepts backing files
	counters    counters
	waits       waits
}

// Mount shows m at dir, an empty folder. The caller ends it with Unmount or Close. With a keeper, which
// may be nil, a process that comes after this one can serve the mount, see [Orphan].
// Without root or /dev/fuse the error wraps [mount.ErrUnsupported].
func Mount(dir string, m Model, keep Keeper, log *slog.Logger) (*FS, error) {
	f := newFS(dir, m, keep, log)
	dev, err := attach(dir)
	if err != nil {
		return nil, err
	}
	began, err := f.begin(dev)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serving %s: %w", dir, err), mount.Unmount(dir), unix.Close(dev))
	}
	go f.answer()
	if f.device, err = device(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("looking at %s: %w", dir, err), mount.Unmount(dir))
	}
	began.Device = f.device
	if err := f.remember(began); err != nil {
		log.Warn("reads of this mount will not survive a restart", "dir", dir, "err", err)
	}
	if err := f.tune(); err != nil {
		log.Warn("reading ahead is limited to the kernel's default: reads of models that still load will be slow", "dir", dir, "err", err)
	}
	return f, nil
}

func newFS(dir string, m Model, keep Keeper, log *slog.Logger) *FS {
	if keep == nil {
		keep = nobody{}
	}
	f := &FS{model: m, keep: keep, id: rand.Text(), log: log, dir: dir, tree: newTree(m.Manifest()), files: make([]file, len(m.Manifest().Files)), done: make(chan struct{})}
	f.waits.log, f.waits.why = log.With("model", m.Manifest().Model.String()), f.Describe
	return f
}

// begin answers the kernel's first message.
func (f *FS) begin(dev int) (*record, error) {
	init, err := request(dev)
	if err != nil {
		return nil, err
	}
	answer, err := f.connect(dev, init)
	if err == nil {
		_, err = unix.Write(dev, answer)
	}
	return &record{Dir: f.dir, Request: init, Answer: answer}, err
}

// remember has the keeper remember the connection, before there is anything to note of it.
func (f *FS) remember(began *record) error {
	data, err := json.Marshal(began)
	if err != nil {
		return err
	}
	return f.keep.Keep(f.id, data, f.server.conn)
}

// tune raises the read-ahead, which must be done before the first open.
func (f *FS) tune() error {
	knob := fmt.Sprintf("/sys/class/bdi/%s/read_ahead_kb", number(f.device))
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
	return p.Device == number(f.device)
}

// device finds the number of what is mounted at dir without asking it.
func device(dir string) (uint64, error) {
	p, err := mount.At(dir)
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if p == nil || !Ours(p) {
		return 0, errors.New("the mount has gone")
	}
	if _, err := fmt.Sscanf(p.Device, "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("its device %q: %w", p.Device, err)
	}
	return unix.Mkdev(major, minor), nil
}

// number writes a device as the table of mounts does.
func number(device uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}

// Done is closed when the model is unmounted everywhere and its last user has gone.
func (f *FS) Done() <-chan struct{} { return f.done }

// Close takes the model away from everybody: reads that wait end with an error, later ones too.
// Files opened with passthrough go on. It fails where the kernel does not end the connection in time.
func (f *FS) Close() error {
	select {
	case <-f.done:
		return f.Unmount()
	default:
	}
	f.settle()
	var err error
	if !dead(f.server.conn) { // else its number may be another connection's by now
		err = abort(f.device)
	}
	if err := errors.Join(err, f.Unmount()); err != nil {
		return err
	}
	select {
	case <-f.done:
		return nil
	case <-time.After(ending):
		return fmt.Errorf("%s: the kernel has not ended the connection after %s", f.dir, ending)
	}
}
