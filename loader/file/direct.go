package file

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reading a local disk past the page cache costs about half of the processor's time and leaves no second
// copy of the model in memory. Whether it can be done is asked of each file (statx says how reads must be
// aligned, since Linux 6.1; file systems over a network and tmpfs say nothing, and are read through the
// page cache), and whether it helps as well: what is cached already is faster there.
const (
	directLeast = 1 << 20 // bytes of a range: for less it is not worth it
	directRead  = 1 << 20 // bytes that are read at once: with 256 KiB it is half as fast
)

// canDirect returns what offsets, lengths and addresses of direct reads of a range of f must be multiples
// of, 0 where it is better read through the page cache.
func canDirect(f *os.File, off, n int64) (align int64) {
	if n < directLeast {
		return 0
	}
	control(f, func(fd int) {
		if align = alignment(fd); align > 0 && cached(fd, off, n) {
			align = 0
		}
	})
	return align
}

// alignment returns what offsets, lengths and addresses of direct reads must be multiples of, 0 where there
// are none.
func alignment(fd int) int64 {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0
	}
	if st.Dio_offset_align == 0 || st.Dio_mem_align == 0 {
		return 0
	}
	return int64(max(st.Dio_offset_align, st.Dio_mem_align)) // both are powers of two
}

// cached reports whether half of a range or more is in the page cache (since Linux 6.5 one can ask).
func cached(fd int, off, n int64) bool {
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &st, 0); err != nil {
		return false
	}
	return 2*st.Cache*uint64(os.Getpagesize()) >= uint64(n)
}

// ReadStraight implements [fetch.StraightReader].
func (o *object) ReadStraight(p []byte) (int, error) {
	n := int64(min(len(p), directRead))
	if o.align > 0 {
		n &^= o.align - 1
	}
	if o.align == 0 || n == 0 || (o.off|int64(uintptr(unsafe.Pointer(&p[0]))))&(o.align-1) != 0 {
		return o.Read(p[:min(len(p), 256<<10)])
	}
	if err := o.live(); err != nil {
		return 0, err
	}
	got, err := o.pread(p[:n])
	if err == syscall.EINVAL { // the file system promised what it does not do
		o.align = 0
		return o.Read(p[:n])
	}
	return o.moved(got, err)
}

// pread is one read past the page cache: [os.File.ReadAt] would go on behind the end of the file, where no
// offset is aligned.
func (o *object) pread(p []byte) (n int, err error) {
	control(o.file, func(fd int) {
		if err = o.setDirect(fd, true); err != nil {
			return
		}
		for {
			if n, err = unix.Pread(fd, p, o.off); err != unix.EINTR {
				return
			}
		}
	})
	return n, err
}

// setDirect has the next reads go past the page cache, or through it.
func (o *object) setDirect(fd int, direct bool) error {
	if o.direct == direct {
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags &^= unix.O_DIRECT; direct {
		flags |= unix.O_DIRECT
	}
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags); err == nil {
		o.direct = direct
	}
	return err
}

// control calls do with the descriptor of f.
func control(f *os.File, do func(fd int)) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}
