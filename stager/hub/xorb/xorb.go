// Package xorb makes what the Hub's content-addressed store (Xet) holds of a file: chunks, the xorbs they are packed
// into, and the hashes that name them.
//
// A [Layout] says which chunk of a file is in which xorb, by arithmetic; only [Layout.Hash] reads the file, once. A xorb
// has no bytes of its own: [Layout.Open] makes them from the file's while they are read.
//
//	l := xorb.New(file, size, xorb.Config{Schemes: []xorb.Scheme{xorb.ByteGroups}})
//	names, err := l.Hash(ctx)      // reads the file: names.File, names.Xorbs
//	bytes, err := l.Open(0)        // the first xorb, as a store serves it
//
// The format is that of huggingface/xet-core (af1a3ff9) and its specification in huggingface/hub-docs (docs/xet), with
// one liberty: chunks have one size instead of boundaries that follow from their content. So the hashes are the real
// ones of these chunks, and differ from those that the Hub gives the same file where its chunks differ. No client can
// tell: boundaries are the uploader's choice.
package xorb

import (
	"fmt"
	"io"
	"slices"
)

// What the format allows.
const (
	MaxChunk  = 128 << 10 // bytes of a chunk, unpacked
	maxChunks = 8192      // of a xorb
	maxXorb   = 64 << 20  // bytes of a xorb
)

// Config says how files are cut and packed.
type Config struct {
	Chunk   int      // bytes; 0 is 64 KiB, what boundaries that follow from content have on average
	Chunks  int      // of a xorb; 0 is as many as fit
	Schemes []Scheme // how the chunks of a file are packed, in turn; none is Plain
}

// Span is a half-open range of chunks, or of bytes.
type Span struct{ Start, End int64 }

// Len is how many there are.
func (s Span) Len() int64 { return s.End - s.Start }

// Layout is a file in the store. It is safe for concurrent use.
type Layout struct {
	open    func() (io.ReaderAt, error)
	size    int64
	chunk   int64
	chunks  int64 // of a xorb that is full
	schemes []Scheme
	offsets cache
}

// New returns the layout of a file of size > 0 bytes. It panics where the configuration is not of the format.
func New(open func() (io.ReaderAt, error), size int64, c Config) *Layout {
	if c.Chunk == 0 {
		c.Chunk = 64 << 10
	}
	most := min(maxChunks, maxXorb/(c.Chunk+headerSize))
	if c.Chunks == 0 {
		c.Chunks = most
	}
	if size <= 0 || c.Chunk < 1 || c.Chunk > MaxChunk || c.Chunks < 1 || c.Chunks > most {
		panic(fmt.Sprintf("xorb: chunks of %d bytes, %d in a xorb, of a file of %d bytes", c.Chunk, c.Chunks, size))
	}
	if len(c.Schemes) == 0 {
		c.Schemes = []Scheme{Plain}
	}
	return &Layout{open: open, size: size, chunk: int64(c.Chunk), chunks: int64(c.Chunks), schemes: slices.Clone(c.Schemes)}
}

// Xorbs is how many xorbs hold the file.
func (l *Layout) Xorbs() int64 { return (l.count() + l.chunks - 1) / l.chunks }

// count is how many chunks the file has.
func (l *Layout) count() int64 { return (l.size + l.chunk - 1) / l.chunk }

// in is how many chunks a xorb has.
func (l *Layout) in(xorb int64) int64 { return min(l.chunks, l.count()-xorb*l.chunks) }

// at returns which bytes of the file a chunk is.
func (l *Layout) at(xorb, chunk int64) Span {
	start := (xorb*l.chunks + chunk) * l.chunk
	return Span{start, min(start+l.chunk, l.size)}
}

// Term is a run of chunks in one xorb.
type Term struct {
	Xorb   int64
	Chunks Span
	Bytes  Span  // of the xorb
	Length int64 // bytes, unpacked
}

// Terms returns what makes up the bytes of the file from off to end, and how many bytes of the first chunk are before
// them. Both are inside the file.
func (l *Layout) Terms(off, end int64) (terms []Term, skip int64, err error) {
	if off < 0 || off >= end || end > l.size {
		panic(fmt.Sprintf("xorb: bytes %d to %d of a file of %d", off, end, l.size))
	}
	first, last := off/l.chunk, (end-1)/l.chunk
	for c := first; c <= last; {
		x := c / l.chunks
		from, to := c-x*l.chunks, min(last+1-x*l.chunks, l.chunks)
		offsets, err := l.offsetsOf(x)
		if err != nil {
			return nil, 0, err
		}
		terms = append(terms, Term{
			Xorb: x, Chunks: Span{from, to}, Bytes: Span{offsets[from], offsets[to]},
			Length: l.at(x, to-1).End - l.at(x, from).Start,
		})
		c = (x + 1) * l.chunks
	}
	return terms, off - first*l.chunk, nil
}
