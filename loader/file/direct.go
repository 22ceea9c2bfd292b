package file

import (
	"cmp"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reading a local disk past the page cache costs a third of the processor's time (0.2 CPU-s/GB against
// 0.6) and leaves no second copy of the model in memory. Whether it can be done is asked of each file
// (statx says how reads must be aligned, since Linux 6.1; file systems over a network and tmpfs say
// nothing, and are read through the page cache), and whether it helps as well: what is cached already is
// faster there.
//
// The kernel writes to a buffer of this process and not to the cache's mapping: a page of a file that is
// written to by a device while the kernel writes it back may be lost.
const (
	directLeast  = 1 << 20 // bytes of a range: for less it is not worth it
	directBuffer = 1 << 20 // bytes that are read at once
	directAlign  = 4096    // of buffers, and what a file system may ask for at most
)

// directBuffers are aligned and of directBuffer bytes.
var directBuffers = sync.Pool{New: func() any {
	b := make([]byte, directBuffer+directAlign)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (directAlign - 1)
	b = b[skip:][:directBuffer]
	return &b
}}

// direct reads a range of a file past the page cache.
type direct struct {
	align int64
	at    int64 // where the next read begins, aligned
	end   int64 // of the range
	buf   *[]byte
	rest  []byte // of buf: what was read and not yet asked for
}

// newDirect returns nil where f is better read through the page cache.
func newDirect(f *os.File, off, n int64) *direct {
	if n < directLeast {
		return nil
	}
	var d *direct
	control(f, func(fd int) {
		align := alignment(fd)
		if align == 0 || cached(fd, off, n) || setDirect(fd) != nil {
			return
		}
		d = &direct{align: align, at: off &^ (align - 1), end: off + n}
	})
	return d
}

// alignment returns what offsets and lengths of direct reads must be multiples of, 0 where there are none.
func alignment(fd int) int64 {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0
	}
	a := st.Dio_offset_align
	if st.Dio_mem_align > directAlign || a > directAlign || a&(a-1) != 0 {
		return 0
	}
	return int64(a)
}

// cached reports whether half of a range or more is in the page cache (since Linux 6.5 one can ask).
func cached(fd int, off, n int64) bool {
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &st, 0); err != nil {
		return false
	}
	return 2*st.Cache*uint64(os.Getpagesize()) >= uint64(n)
}

func setDirect(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	return err
}

func clearDirect(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	return err
}

// control calls do with the descriptor of f.
func control(f *os.File, do func(fd int)) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// read gives bytes of f from off, at which the last read ended.
func (d *direct) read(f *os.File, p []byte, off int64) (int, error) {
	if len(d.rest) == 0 {
		if err := d.fill(f, off); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *direct) fill(f *os.File, off int64) error {
	if d.buf == nil {
		d.buf = directBuffers.Get().(*[]byte)
	}
	want := (d.end - d.at + d.align - 1) &^ (d.align - 1)
	if want <= 0 { // more was asked for than announced
		want = directBuffer
	}
	n, err := pread(f, (*d.buf)[:min(want, directBuffer)], d.at)
	if err != nil {
		return err
	}
	if n <= int(off-d.at) {
		return io.EOF
	}
	d.rest = (*d.buf)[off-d.at : n]
	d.at = (d.at + int64(n)) &^ (d.align - 1)
	return nil
}

// pread is one read: File.ReadAt would go on behind the end of a file, where no offset is aligned.
func pread(f *os.File, p []byte, off int64) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) {
		for {
			if n, err = unix.Pread(int(fd), p, off); err != unix.EINTR {
				return
			}
		}
	})
	if err = cmp.Or(failed, err); err != nil {
		return 0, &os.PathError{Op: "read", Path: f.Name(), Err: err}
	}
	return n, nil
}

func (d *direct) close() {
	if d.buf != nil {
		directBuffers.Put(d.buf)
		d.buf, d.rest = nil, nil
	}
}
