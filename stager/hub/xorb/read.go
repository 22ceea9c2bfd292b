package xorb

import (
	"fmt"
	"io"
	"sort"
	"sync"
)

// cache keeps where the chunks of xorbs begin: some kilobytes each, a thousandth of what is packed to find them.
type cache struct {
	mu sync.Mutex
	of map[int64][]int64
}

// offsetsOf returns where in a xorb its chunks begin, and where the last ends.
func (l *Layout) offsetsOf(xorb int64) ([]int64, error) {
	l.offsets.mu.Lock()
	known := l.offsets.of[xorb]
	l.offsets.mu.Unlock()
	if known != nil {
		return known, nil
	}
	offsets, err := l.measure(xorb)
	if err != nil {
		return nil, err
	}
	l.offsets.mu.Lock()
	defer l.offsets.mu.Unlock()
	if l.offsets.of == nil {
		l.offsets.of = make(map[int64][]int64)
	}
	l.offsets.of[xorb] = offsets
	return offsets, nil
}

// measure packs the chunks of a xorb, where they are packed, for the sake of their lengths.
func (l *Layout) measure(xorb int64) ([]int64, error) {
	offsets := make([]int64, 1, l.in(xorb)+1)
	r := &reader{layout: l, xorb: xorb, chunk: -1}
	defer r.Close()
	for c := range l.in(xorb) {
		n := headerSize + l.at(xorb, c).Len()
		if l.scheme(xorb, c) != Plain {
			if err := r.load(c); err != nil {
				return nil, err
			}
			n = int64(len(r.packed))
		}
		offsets = append(offsets, offsets[c]+n)
	}
	return offsets, nil
}

func (l *Layout) scheme(xorb, chunk int64) Scheme {
	return l.schemes[(xorb*l.chunks+chunk)%int64(len(l.schemes))]
}

// Size is how many bytes a xorb has.
func (l *Layout) Size(xorb int64) (int64, error) {
	offsets, err := l.offsetsOf(xorb)
	if err != nil {
		return 0, err
	}
	return offsets[len(offsets)-1], nil
}

// Open gives access to the bytes of a xorb, for one goroutine, which closes it.
func (l *Layout) Open(xorb int64) (io.ReaderAt, error) {
	offsets, err := l.offsetsOf(xorb)
	if err != nil {
		return nil, err
	}
	return &reader{layout: l, xorb: xorb, offsets: offsets, chunk: -1}, nil
}

// reader packs chunks when they are read. It keeps the last one, of which the next read has the rest.
type reader struct {
	layout  *Layout
	xorb    int64
	offsets []int64
	file    io.ReaderAt // nil: not opened yet

	packer packer
	plain  []byte
	packed []byte // of chunk, with its header
	chunk  int64
}

func (r *reader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		c := int64(sort.Search(len(r.offsets), func(i int) bool { return r.offsets[i] > at })) - 1
		if c < 0 || c >= int64(len(r.offsets))-1 {
			return n, io.EOF
		}
		if err := r.load(c); err != nil {
			return n, err
		}
		n += copy(p[n:], r.packed[at-r.offsets[c]:])
	}
	return n, nil
}

// load makes a chunk the present one.
func (r *reader) load(c int64) (err error) {
	if r.chunk == c {
		return nil
	}
	l := r.layout
	if r.file == nil {
		if r.file, err = l.open(); err != nil {
			return err
		}
		r.plain = make([]byte, l.chunk)
	}
	at := l.at(r.xorb, c)
	if err := readFull(r.file, r.plain[:at.Len()], at.Start); err != nil {
		return err
	}
	if r.packed, err = r.packer.pack(r.packed[:0], r.plain[:at.Len()], l.scheme(r.xorb, c)); err != nil {
		return fmt.Errorf("packing at %d: %w", at.Start, err)
	}
	r.chunk = c
	return nil
}

func (r *reader) Close() error {
	if r.file != nil {
		closeFile(r.file)
	}
	return nil
}
