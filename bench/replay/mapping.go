package replay

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is how much is copied at a time, in bytes.
const step = 4 << 20

// mapping is a shard as torch holds it: mapped whole, privately, its descriptor closed. One that was read
// by [reader.direct] is anonymous memory.
type mapping struct {
	path  string
	bytes []byte
}

// FaultError says that a page of a mapped file could not be read. A program that does not expect it
// dies of SIGBUS there.
type FaultError struct {
	Path   string
	Offset int64 // bytes from the file's start
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("%s: byte %d cannot be read through a mapping (SIGBUS): the file ends before it, or its file system failed", e.Path, e.Offset)
}

func (r *reader) mapFile(path string) (*mapping, error) {
	f, size, err := r.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Advice only: a file system that does not take it is read all the same.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return &mapping{path, b}, nil
}

func (m *mapping) unmap() {
	_ = unix.Munmap(m.bytes[:cap(m.bytes)]) // fails only for what is not mapped
}

// walk copies n bytes from off into buf, one step after the other, and hands each step to each,
// with its offset in the file.
func (m *mapping) walk(ctx context.Context, buf []byte, off, n int64, each func(b []byte, off int64)) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = m.fault(r)
		}
	}()
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := copy(buf, m.bytes[off:min(end, int64(len(m.bytes)))])
		if k == 0 {
			return &FaultError{m.path, off} // the file shrank between reading its header and mapping it
		}
		each(buf[:k], off)
		off += int64(k)
	}
	return nil
}

// fault turns a panic over one of m's pages into an error; any other one goes on.
func (m *mapping) fault(recovered any) error {
	e, ok := recovered.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		panic(recovered)
	}
	off := e.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(m.bytes)))
	if off >= uintptr(len(m.bytes)) {
		panic(recovered)
	}
	return &FaultError{m.path, int64(off)}
}
