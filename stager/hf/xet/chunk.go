package xet

import (
	"bytes"
	"io"

	"github.com/pierrec/lz4/v4"
)

// What the format allows (hub-docs, docs/xet/xorb.md).
const (
	maxChunk = 128 << 10 // bytes, unpacked
	// maxPacked is more than a packer makes, which leaves a chunk as it is where it would grow: the overhead of a
	// frame of blocks that could not be compressed.
	maxPacked = maxChunk + 1<<10
	// maxChunks is how many chunks a xorb has.
	maxChunks  = 8192
	headerSize = 8
)

// The schemes by which a chunk is packed.
const (
	plain      = 0
	lz4Frame   = 1
	byteGroups = 2 // every fourth byte side by side, then an LZ4 frame
)

// header is what stands before a chunk.
type header struct {
	scheme byte
	packed int
	length int // unpacked
}

// parseHeader reads a header: version 0, packed length in three bytes, scheme, length in three.
func parseHeader(b [headerSize]byte) (header, error) {
	u24 := func(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }
	h := header{scheme: b[4], packed: u24(b[1:]), length: u24(b[5:])}
	switch {
	case b[0] != 0:
		return h, malformed("a chunk has version %d of the format, not 0", b[0])
	case h.scheme > byteGroups:
		return h, malformed("a chunk is packed in a way that is not known (%d)", h.scheme)
	case h.length == 0 || h.length > maxChunk:
		return h, malformed("a chunk of %d bytes: the format allows 1 to %d", h.length, maxChunk)
	case h.packed == 0 || h.packed > maxPacked, h.scheme == plain && h.packed != h.length:
		return h, malformed("a chunk of %d bytes is packed in %d", h.length, h.packed)
	}
	return h, nil
}

// unpacker has the memory that it takes to unpack a chunk.
type unpacker struct {
	lz      *lz4.Reader
	packed  []byte
	grouped []byte
	chunk   []byte
}

func newUnpacker() *unpacker { return &unpacker{lz: lz4.NewReader(nil)} }

// room returns n bytes, of *b where they fit.
func room(b *[]byte, n int) []byte {
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	return (*b)[:n]
}

// read reads a chunk whose header was read from r into dst, which has its length.
func (u *unpacker) read(r io.Reader, h header, dst []byte) error {
	if h.scheme == plain {
		return full(r, dst)
	}
	packed := room(&u.packed, h.packed)
	if err := full(r, packed); err != nil {
		return err
	}
	if h.scheme == lz4Frame {
		return u.unframe(packed, dst)
	}
	grouped := room(&u.grouped, h.length)
	if err := u.unframe(packed, grouped); err != nil {
		return err
	}
	ungroup(dst, grouped)
	return nil
}

// unframe unpacks an LZ4 frame that has exactly len(dst) bytes. Of one that has more it unpacks a block at most.
func (u *unpacker) unframe(packed, dst []byte) error {
	in := bytes.NewReader(packed)
	u.lz.Reset(in)
	if _, err := io.ReadFull(u.lz, dst); err != nil {
		return malformed("a chunk of %d bytes cannot be unpacked: %v", len(dst), err)
	}
	var more [1]byte
	if n, err := u.lz.Read(more[:]); n != 0 || err != io.EOF || in.Len() != 0 {
		return malformed("a chunk has more bytes in it than the %d that it says", len(dst))
	}
	return nil
}

// ungroup puts back side by side what every fourth byte from the first, the second, … was. A length that is no multiple
// of four makes the first groups one longer.
func ungroup(dst, grouped []byte) {
	n := len(dst)
	// Where each group begins; the first n%4 have one byte more.
	of := func(plane int) int { return plane*(n/4) + min(plane, n%4) }
	g0, g1, g2, g3 := grouped[:of(1)], grouped[of(1):of(2)], grouped[of(2):of(3)], grouped[of(3):n]
	i := 0
	for ; 4*i+4 <= n; i++ {
		d := dst[4*i : 4*i+4 : 4*i+4]
		d[0], d[1], d[2], d[3] = g0[i], g1[i], g2[i], g3[i]
	}
	for plane, g := range [][]byte{g0, g1, g2}[:n%4] {
		dst[4*i+plane] = g[i]
	}
}

// full is io.ReadFull with an end inside a chunk as what it is.
func full(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
