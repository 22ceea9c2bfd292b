package gemma

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
)

// A reference makes a file's bytes the slow way: one at a time, from what the file's own header says, without any of
// the arithmetic of shard.ReadAt.
type reference struct {
	head    []byte
	tensors []placed
}

type placed struct {
	entry
	key  uint64
	pool *pool
}

func newReference(t testing.TB, size string, seed uint64, path string) (reference, *shard) {
	t.Helper()
	r := repo(t, size, seed)
	entries, data := header(t, r, path)
	ref := reference{head: make([]byte, data)}
	readAt(t, r, path, ref.head, 0)
	pools := newPools()
	for name, e := range entries {
		shape := make([]int, len(e.Shape))
		for i, n := range e.Shape {
			shape[i] = int(n)
		}
		mean, std := tensor{name: name, shape: shape}.distribution()
		ref.tensors = append(ref.tensors, placed{e, tensorKey(size, seed, name), pools.get(mean, std)})
	}
	slices.SortFunc(ref.tensors, func(a, b placed) int { return cmp.Compare(a.Place[0], b.Place[0]) })
	f, err := r.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return ref, f.(*shard)
}

// bytes returns those from off to end, for off and end within the file.
func (r reference) bytes(off, end int64) []byte {
	b := make([]byte, 0, end-off)
	var block [blockSize]byte
	var of placed
	made := int64(-1)
	for ; off < end; off++ {
		if off < int64(len(r.head)) {
			b = append(b, r.head[off])
			continue
		}
		o := off - int64(len(r.head))
		i := slices.IndexFunc(r.tensors, func(t placed) bool { return t.Place[0] <= o && o < t.Place[1] })
		t := r.tensors[i]
		if n := (o - t.Place[0]) / blockSize; n != made || t.key != of.key {
			of, made = t, n
			t.pool.fill(block[:], mix(t.key^mix(uint64(n))))
		}
		b = append(b, block[(o-t.Place[0])%blockSize])
	}
	return b
}

// Reads that begin and end at, before and behind every kind of edge: of the header, of tensors, of blocks, of the file.
func TestReadEdges(t *testing.T) {
	ref, f := newReference(t, "270m", 3, "model.safetensors")
	head := int64(len(ref.head))
	edges := []int64{0, head, head + blockSize, f.size, f.size - blockSize}
	for _, p := range ref.tensors[1:14] { // a layer: matrices, and vectors shorter than a block, side by side
		edges = append(edges, head+p.Place[0], head+p.Place[0]+blockSize)
	}
	const around = 3 * blockSize
	for _, edge := range edges {
		low, high := max(edge-around, 0), min(edge+2*around, f.size)
		want := ref.bytes(low, high)
		for _, d := range []int64{-blockSize - 1, -9, -8, -1, 0, 1, 7, 8, blockSize - 1, blockSize, blockSize + 1} {
			for _, n := range []int64{0, 1, 7, 8, 9, 1281, blockSize - 1, blockSize, blockSize + 1, 2 * blockSize, 2*blockSize + 1} {
				if off := edge + d; off >= low {
					checkRead(t, f, off, n, want, low)
				}
			}
		}
	}
}

// checkRead reads n bytes at off and compares with want, which begins at low and reaches to the end of the read or of
// the file.
func checkRead(t *testing.T, f *shard, off, n int64, want []byte, low int64) {
	t.Helper()
	p := make([]byte, n)
	got, err := f.ReadAt(p, off)
	left := max(f.size-off, 0)
	if int64(got) != min(n, left) {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v; %d are left", n, off, got, err, left)
	}
	if end := n > left || left == 0; (err == io.EOF) != end || !end && err != nil {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v; %d are left", n, off, got, err, left)
	}
	if got > 0 && !bytes.Equal(p[:got], want[off-low:][:got]) {
		t.Fatalf("ReadAt(%d bytes, %d) gave other bytes", n, off)
	}
}

func TestNegativeOffset(t *testing.T) {
	_, f := newReference(t, "270m", 0, "model.safetensors")
	if n, err := f.ReadAt(make([]byte, 8), -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1) = %d, %v", n, err)
	}
}

func TestReaderContract(t *testing.T) {
	ref, f := newReference(t, "270m", 0, "model.safetensors")
	head := int64(len(ref.head))
	// From within the header over the embedding's first blocks, and the last blocks to the end.
	for _, part := range [][2]int64{{head - 100, head + 3*blockSize + 50}, {f.size - 3*blockSize - 50, f.size}} {
		section := io.NewSectionReader(f, part[0], part[1]-part[0])
		if err := iotest.TestReader(section, ref.bytes(part[0], part[1])); err != nil {
			t.Error(err)
		}
	}
}

// Offsets behind 4 GiB, in a shard that is not the first.
func TestReadFar(t *testing.T) {
	ref, f := newReference(t, "27b", 0, "model-00007-of-00012.safetensors")
	off := int64(4<<30) + 12345
	checkRead(t, f, off, 100_000, ref.bytes(off, off+100_000), off)
}

func TestReadConcurrently(t *testing.T) {
	_, f := newReference(t, "270m", 0, "model.safetensors")
	want := make([]byte, 1<<20)
	if _, err := f.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			// Each with pieces of another length, none of which divides a block.
			got, step := make([]byte, len(want)), 1000+777*i
			for off := 0; off < len(got); off += step {
				if _, err := f.ReadAt(got[off:min(off+step, len(got))], int64(off)); err != nil {
					t.Error(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("in pieces of %d bytes: other bytes", step)
			}
		})
	}
	group.Wait()
}

func TestSeedsAndSizesDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, size := range sizes {
		for _, seed := range []uint64{0, 1, 1 << 63} {
			r := repo(t, size, seed)
			for _, f := range r.Files() {
				if !f.LFS || f.Path[:5] != "model" {
					continue
				}
				page := make([]byte, 4096)
				readAt(t, r, f.Path, page, f.Size-100_000)
				who := fmt.Sprint(size, seed, f.Path)
				if other := seen[string(page)]; other != "" {
					t.Errorf("%s is like %s", who, other)
				}
				seen[string(page)] = who
			}
		}
	}
}

// Any read gives what reading the same range in two parts gives, and never more than there is.
func FuzzReadAt(f *testing.F) {
	_, file := newReference(f, "1b", 0, "model.safetensors")
	f.Add(int64(0), uint32(100), uint32(8))
	f.Add(int64(39295), uint32(5000), uint32(4096))
	f.Add(file.size-1, uint32(2), uint32(1))
	f.Add(int64(-1), uint32(1), uint32(0))
	f.Add(int64(1<<62), uint32(1), uint32(0))
	f.Fuzz(func(t *testing.T, off int64, n, cut uint32) {
		p := make([]byte, n%(1<<16))
		got, err := file.ReadAt(p, off)
		if want := max(0, min(int64(len(p)), file.size-off)); off >= 0 && int64(got) != want || off < 0 && (got != 0 || err == nil) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(p), off, got, err)
		}
		if got == 0 {
			return
		}
		first := int(cut) % got
		parts := make([]byte, got)
		if _, err := file.ReadAt(parts[:first], off); err != nil {
			t.Fatal(err)
		}
		if _, err := file.ReadAt(parts[first:], off+int64(first)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(parts, p[:got]) {
			t.Fatalf("ReadAt(%d bytes, %d) differs from reading %d bytes first", len(p), off, first)
		}
	})
}

func BenchmarkReadAt(b *testing.B) {
	for _, size := range []int{4 << 10, 32 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			_, f := newReference(b, "27b", 0, "model-00002-of-00012.safetensors")
			p := make([]byte, size)
			b.SetBytes(int64(size))
			for off := int64(0); b.Loop(); off = (off + int64(size)) % (f.size - int64(size)) {
				if _, err := f.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDigest(b *testing.B) {
	_, f := newReference(b, "27b", 0, "model-00002-of-00012.safetensors")
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		if _, err := digest(f, size); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		repo(b, "27b", 0)
	}
}

func BenchmarkTokenizer(b *testing.B) {
	for b.Loop() {
		v := buildVocabulary()
		tokenizerJSON(v)
		tokenizerModel(v)
	}
}
