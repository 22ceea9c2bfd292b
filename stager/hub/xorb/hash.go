package xorb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

// Hash names a chunk, a xorb or a file.
type Hash [32]byte

// String is how Xet writes a hash: as four little-endian numbers.
func (h Hash) String() string {
	var words [4]uint64
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(h[8*i:])
	}
	return fmt.Sprintf("%016x%016x%016x%016x", words[0], words[1], words[2], words[3])
}

// The keys of the three kinds of hashes (hub-docs, docs/xet/hashing.md).
var (
	chunkKey = [32]byte{
		102, 151, 245, 119, 91, 149, 80, 222, 49, 53, 203, 172, 165, 151, 24, 28,
		157, 228, 33, 16, 155, 235, 43, 88, 180, 208, 176, 75, 147, 173, 242, 41,
	}
	nodeKey = [32]byte{
		1, 126, 197, 199, 165, 71, 41, 150, 253, 148, 102, 102, 180, 138, 2, 230,
		93, 221, 83, 111, 55, 199, 109, 210, 248, 99, 82, 230, 74, 83, 113, 63,
	}
	fileKey [32]byte
)

func keyed(key *[32]byte, data []byte) (h Hash) {
	b, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("xorb: a key of 32 bytes: " + err.Error())
	}
	b.Write(data)
	b.Sum(h[:0])
	return h
}

// node is a hash and how many bytes it stands for.
type node struct {
	hash Hash
	size int64
}

// root joins nodes, groups of them into one, until one is left.
func root(nodes []node) Hash {
	for len(nodes) > 1 {
		var above []node
		for len(nodes) > 0 {
			n := group(nodes)
			above = append(above, join(nodes[:n]))
			nodes = nodes[n:]
		}
		nodes = above
	}
	return nodes[0].hash
}

// group returns how many of the nodes make up the next one above: up to the first, from the third to the ninth, whose
// hash says so.
func group(nodes []node) int {
	const most = 9
	if len(nodes) <= 2 {
		return len(nodes)
	}
	for i := 2; i < min(most, len(nodes)); i++ {
		if binary.LittleEndian.Uint64(nodes[i].hash[24:])%4 == 0 {
			return i + 1
		}
	}
	return min(most, len(nodes))
}

func join(nodes []node) node {
	var text []byte
	var sum node
	for _, n := range nodes {
		text = fmt.Appendf(text, "%s : %d\n", n.hash, n.size)
		sum.size += n.size
	}
	sum.hash = keyed(&nodeKey, text)
	return sum
}

// Names are the hashes of a file and of its xorbs.
type Names struct {
	File  Hash
	Xorbs []Hash
}

// Hash reads the file, on all processors.
func (l *Layout) Hash(ctx context.Context) (Names, error) {
	file, err := l.open()
	if err != nil {
		return Names{}, err
	}
	defer closeFile(file)
	chunks := make([]node, l.count())
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for x := range l.Xorbs() {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			buf := make([]byte, l.chunk)
			for c := range l.in(x) {
				at := l.at(x, c)
				p := buf[:at.Len()]
				if err := readFull(file, p, at.Start); err != nil {
					return err
				}
				chunks[x*l.chunks+c] = node{hash: keyed(&chunkKey, p), size: at.Len()}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Names{}, err
	}
	var n Names
	for x := range l.Xorbs() {
		n.Xorbs = append(n.Xorbs, root(chunks[x*l.chunks:][:l.in(x)]))
	}
	top := root(chunks)
	n.File = keyed(&fileKey, top[:])
	return n, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading at %d: %w", off, err)
	}
	return nil
}

func closeFile(r io.ReaderAt) {
	if c, ok := r.(io.Closer); ok {
		c.Close() // opened for reading: nothing can be lost
	}
}
