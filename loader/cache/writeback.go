package cache

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// writeback sends the committed chunks of an entry to their disk, one after the other. The kernel would
// let them pile up, to a tenth of the memory and then to where it stops who writes, and the sync of the
// sealed entry would find all of it to do.
type writeback struct {
	paths []string // of the files, before any is moved to where it ends
	queue chan piece
	ended atomic.Bool
	done  sync.WaitGroup
}

// piece is a range of a file that is to be written.
type piece struct {
	file   int
	off, n int64
}

const (
	pending = 256     // chunks that may wait; those that find the queue full are left to the kernel
	stretch = 1 << 20 // bytes that are begun at once: end waits for no more
)

// writeBack queues a committed chunk. It never waits.
func (e *Entry) writeBack(file, chunk int) {
	if e.flusher == nil {
		return
	}
	off := int64(chunk) * e.m.ChunkSize
	select {
	case e.flusher.queue <- piece{file, off, min(e.m.ChunkSize, e.m.Files[file].Size-off)}:
	default:
	}
}

func startWriteback(e *Entry) *writeback {
	w := &writeback{paths: make([]string, len(e.files)), queue: make(chan piece, pending)}
	for i := range w.paths {
		w.paths[i] = e.path(i)
	}
	w.done.Go(w.run)
	return w
}

// run writes what is queued. Chunks of one file follow each other: it stays open meanwhile.
func (w *writeback) run() {
	file, fd := -1, -1
	for p := range w.queue {
		if w.ended.Load() {
			continue
		}
		if p.file != file {
			if fd >= 0 {
				unix.Close(fd)
			}
			var err error
			if fd, err = unix.Open(w.paths[p.file], unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
				fd = -1
			}
			file = p.file
		}
		if fd >= 0 {
			w.start(fd, p)
		}
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}

// start begins to write a piece and does not wait for the disk, but for a place in its queue. An error
// shows up in the sync of the entry again, which is where it counts.
func (w *writeback) start(fd int, p piece) {
	for off := p.off; off < p.off+p.n && !w.ended.Load(); off += stretch {
		if unix.SyncFileRange(fd, off, min(stretch, p.off+p.n-off), unix.SYNC_FILE_RANGE_WRITE) != nil {
			return
		}
	}
}

// end drops what is queued: it is left to the kernel, and to the sync.
func (w *writeback) end() {
	w.ended.Store(true)
	close(w.queue)
	w.done.Wait()
}
