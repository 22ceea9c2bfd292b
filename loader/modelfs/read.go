package modelfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Stats counts what the file system did.
type Stats struct {
	ServedOpens      int64
	PassthroughOpens int64
	Reads            int64 // requests answered by this process
	Bytes            int64
	Waiting          int64         // reads that wait now
	Waited           time.Duration // by all reads together
	Failed           int64         // reads that ended with an error
	Taken            int64         // requests that an earlier process had left without an answer
}

type counters struct {
	servedOpens, passthroughOpens, reads, bytes, waiting, waited, failed, taken atomic.Int64
}

// Stats returns the counts so far.
func (f *FS) Stats() Stats {
	c := &f.counters
	return Stats{ServedOpens: c.servedOpens.Load(), PassthroughOpens: c.passthroughOpens.Load(), Reads: c.reads.Load(), Bytes: c.bytes.Load(),
		Waiting: c.waiting.Load(), Waited: time.Duration(c.waited.Load()), Failed: c.failed.Load(), Taken: c.taken.Load()}
}

// file is what this process holds of one file.
type file struct {
	mu      sync.Mutex
	mapping []byte // of the backing file, from the first read on
	id      atomic.Int32
}

// backing returns the kernel's number for the backing file, or 0 where there is none.
func (f *file) backing() int32 { return f.id.Load() }

// read returns the bytes that a request asks for, mapped.
func (f *FS) read(interrupted <-chan struct{}, in *fuse.ReadIn) ([]byte, syscall.Errno) {
	n, _ := f.tree.node(in.NodeId)
	if n == nil || n.file < 0 {
		return nil, syscall.ESTALE
	}
	f.counters.reads.Add(1)
	if in.Offset >= uint64(n.size) {
		return nil, 0
	}
	off := int64(in.Offset)
	size := min(int64(in.Size), n.size-off)
	err := f.await(interrupted, in.Pid, n.file, off, size)
	if errors.Is(err, errKilled) {
		return nil, syscall.EINTR
	}
	var data []byte
	if err == nil {
		data, err = f.mapped(n.file)
	}
	if err != nil {
		f.counters.failed.Add(1)
		f.log.Error("a read failed", "model", f.model.Manifest().Model, "file", f.model.Manifest().Files[n.file].Path, "offset", off, "bytes", size, "err", err)
		return nil, syscall.EIO
	}
	f.counters.bytes.Add(size)
	present(data, off, size)
	return data[off : off+size], 0
}

// mapped returns the backing file's bytes. The kernel copies an answer from there: no buffer, no
// second copy, and what a lost medium would make a SIGBUS here is an error of the kernel's write.
func (f *FS) mapped(i int) ([]byte, error) {
	one := &f.files[i]
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.mapping != nil {
		return one.mapping, nil
	}
	backing, err := f.model.Open(i)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	size := f.model.Manifest().Files[i].Size
	if st, err := backing.Stat(); err != nil || st.Size() != size {
		return nil, fmt.Errorf("the backing file is not of %d bytes (%v)", size, err)
	}
	one.mapping, err = unix.Mmap(int(backing.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	return one.mapping, err
}

// present maps the pages of data[off:off+n]. The kernel copies an answer after it has taken the request
// off its list, and when this process is being killed it does not map a page for that: the reader would
// get EIO. Where all pages are mapped, the copy is done to its end.
func present(data []byte, off, n int64) {
	begin := off &^ int64(os.Getpagesize()-1)
	unix.Madvise(data[begin:off+n], unix.MADV_POPULATE_READ) // what it cannot do the copy will complain of
}

func (f *file) unmap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mapping != nil {
		unix.Munmap(f.mapping)
		f.mapping = nil
	}
}

// backed reports whether the kernel has file i's backing file, giving it to the kernel when the file
// is complete. It stays there as long as the connection, so that all opens of the second inode are
// of one kind and name one backing file.
func (f *FS) backed(i int) bool {
	one := &f.files[i]
	if one.backing() > 0 {
		return true
	}
	if !f.passthrough.Load() || !f.model.Complete(i) {
		return false
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.backing() > 0 {
		return true
	}
	backing, err := f.model.Open(i)
	if err != nil {
		f.log.Warn("opening a backing file", "err", err)
		return false
	}
	defer backing.Close()
	id, err := f.server.register(int(backing.Fd()))
	if err != nil || id <= 0 {
		// Not root in the first user namespace, or a cache on a file system that is itself stacked.
		f.log.Warn("the kernel refuses passthrough: complete files are served, slower, until they are published again", "dir", f.dir, "err", err)
		f.passthrough.Store(false)
		return false
	}
	if err := f.remark(note{File: i, ID: id}); err != nil {
		f.log.Warn("opens of this file may fail after a restart", "dir", f.dir, "file", f.model.Manifest().Files[i].Path, "err", err)
	}
	one.id.Store(id) // from here on it is in answers
	return true
}

// remark has the keeper remember a note.
func (f *FS) remark(n note) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return f.keep.Note(f.id, data)
}

// errKilled says that the reader is being killed or the connection has ended.
var errKilled = errors.New("the reader has gone")

// patience is how long an interrupted read waits between two looks at its reader.
const patience = 50 * time.Millisecond

// abandon is when an interrupted read is given up whose reader cannot be looked at. A healthy reader
// that got a signal so long ago takes an error for it then; a killed one would stay for ever.
const abandon = 30 * time.Second

// await waits for bytes to be verified. Pid is the thread that asks, 0 where it is not of this
// process's namespace or where the kernel asks for itself.
//
// The kernel reports any signal that reaches the reader, once, and does not say which. If the
// answer to a page fault were then EINTR, a harmless signal would become SIGBUS; so only a reader
// that is being killed is let go, or one that may be, after a time.
func (f *FS) await(cancel <-chan struct{}, pid uint32, file int, off, n int64) (err error) {
	f.counters.waiting.Add(1)
	start := time.Now()
	end := f.waits.begin(Wait{File: file, Offset: off, Bytes: n, Thread: pid, Since: start})
	defer func() {
		f.counters.waiting.Add(-1)
		f.counters.waited.Add(int64(time.Since(start)))
		end(err)
	}()
	err = f.model.Wait(&fuse.Context{Cancel: cancel}, file, off, n)
	interrupted := time.Now()
	for {
		select {
		case <-cancel:
		default:
			return err
		}
		if err == nil {
			return nil
		}
		if killed(pid) || dead(f.server.conn) || pid == 0 && time.Since(interrupted) > abandon {
			return errKilled
		}
		ctx, stop := context.WithTimeout(context.Background(), patience)
		err = f.model.Wait(ctx, file, off, n)
		expired := ctx.Err() != nil
		stop()
		if !expired {
			return err
		}
	}
}

// killed reports whether a thread has SIGKILL pending, which is also how the kernel ends the threads
// of a process that another signal terminates; or whether it does not exist any more.
func killed(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
