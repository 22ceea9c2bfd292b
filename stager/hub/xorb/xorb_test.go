package xorb

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func layout(data []byte, c Config) *Layout {
	return New(func() (io.ReaderAt, error) { return bytes.NewReader(data), nil }, int64(len(data)), c)
}

// regions is n stretches of the largest chunk, each of one value times step. In such a file the uploader of hf_xet
// finds no boundary before the largest chunk is full, so that its chunks are known: those of Config{Chunk: MaxChunk}.
func regions(n, step int, tail string) []byte {
	var data []byte
	for i := range n {
		data = append(data, bytes.Repeat([]byte{byte(i * step)}, MaxChunk)...)
	}
	return append(data, tail...)
}

// TestHash compares with what hf_xet 1.8.0 says: hf_xet.hash_files([path]).
func TestHash(t *testing.T) {
	small := make([]byte, 8191)
	for i := range small {
		small[i] = byte(i * 7 % 251)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"a byte", []byte("a"), "49a7fffaf5f34109d4a191757f3e541e26437dcd1e0e83153454a503757856be"},
		{"one chunk", small, "cb7faf9bb95c9782e9cb6fb0032a9f14c619b4e628090c27a0e13b41709db926"},
		{"9 chunks", regions(9, 1, ""), "1588d6466e96fb63feb14e4d00bdb737117b0ec41a72f97be5d23b9715c92b4e"},
		{"10", regions(10, 1, ""), "3d6c79804e748d4893b1256499571ca3a9f5494d30084bf353619661abf18ce1"},
		{"40", regions(40, 1, ""), "becb826b97ecddde63a7c591725d7be337af51fa017f90cb6688c3de4c6f7695"},
		{"600, two xorbs", regions(600, 37, ""), "62661c0ed57b3a629e47175f91b5e599533a3310eee6083afec63115a6abe39e"},
	} {
		got, err := layout(c.data, Config{Chunk: MaxChunk}).Hash(t.Context())
		if err != nil || got.File.String() != c.want {
			t.Errorf("%s: %v, %v, want %s", c.name, got.File, err, c.want)
		}
	}
}

// TestXorbs reads every xorb whole and at every edge, and unpacks it with code that is not the package's.
func TestXorbs(t *testing.T) {
	noise := make([]byte, 1000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	data := append(noise, bytes.Repeat([]byte("0123456789abcdef"), 500)...)
	for _, n := range []int{1, 2, 99, 100, 101, 299, 300, 301, len(data)} {
		for _, schemes := range [][]Scheme{nil, {LZ4}, {ByteGroups}, {Plain, LZ4, ByteGroups}} {
			l := layout(data[:n], Config{Chunk: 100, Chunks: 3, Schemes: schemes})
			var whole []byte
			for x := range l.Xorbs() {
				whole = append(whole, readXorb(t, l, x)...)
			}
			if got := unpackAll(t, whole); !bytes.Equal(got, data[:n]) {
				t.Errorf("%d bytes, %v: %d bytes unpacked, not the file's", n, schemes, len(got))
			}
		}
	}
	l := layout(data, Config{Chunk: 1000, Schemes: []Scheme{LZ4}})
	if n, err := l.Size(0); err != nil || n >= 1000+8*500 || n < 1000 {
		t.Errorf("%d bytes packed, %v", n, err)
	}
}

func readXorb(t *testing.T, l *Layout, x int64) []byte {
	t.Helper()
	size, err := l.Size(x)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Open(x)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(f)
	whole := make([]byte, size)
	if n, err := f.ReadAt(whole, 0); n != len(whole) {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
	if err := iotest.TestReader(io.NewSectionReader(f, 0, size), whole); err != nil {
		t.Error(err)
	}
	return whole
}

// TestTerms tries every range of a small file.
func TestTerms(t *testing.T) {
	data := []byte(strings.Repeat("abcdefghijkl", 10))[:107]
	l := layout(data, Config{Chunk: 10, Chunks: 4, Schemes: []Scheme{Plain, LZ4}})
	for off := range int64(107) {
		for end := off + 1; end <= 107; end++ {
			terms, skip, err := l.Terms(off, end)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for _, term := range terms {
				part := unpackAll(t, readXorb1(t, l, term))
				if int64(len(part)) != term.Length {
					t.Fatalf("%d to %d: a term of %d bytes says %d", off, end, len(part), term.Length)
				}
				got = append(got, part...)
			}
			if int64(len(got)) < skip+end-off || !bytes.Equal(got[skip:][:end-off], data[off:end]) || skip >= 10 || int64(len(got))-skip-(end-off) >= 10 {
				t.Fatalf("%d to %d: %d bytes, skip %d", off, end, len(got), skip)
			}
		}
	}
}

func readXorb1(t *testing.T, l *Layout, term Term) []byte {
	t.Helper()
	f, err := l.Open(term.Xorb)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(f)
	p := make([]byte, term.Bytes.Len())
	if n, err := f.ReadAt(p, term.Bytes.Start); n < len(p) {
		t.Fatal(n, err)
	}
	return p
}

func TestGroupBytes(t *testing.T) {
	for src, want := range map[string]string{"": "", "0": "0", "01230123ab": "00a11b2233", "0123012": "0011223"} {
		if got := groupBytes(nil, []byte(src)); string(got) != want {
			t.Errorf("%q: %q, want %q", src, got, want)
		}
	}
}

func TestParseScheme(t *testing.T) {
	if s, err := ParseScheme("mixed"); err != nil || !slices.Equal(s, []Scheme{Plain, LZ4, ByteGroups}) {
		t.Error(s, err)
	}
	if _, err := ParseScheme("zip"); err == nil {
		t.Error("a scheme zip")
	}
}

func TestShortFile(t *testing.T) {
	l := New(func() (io.ReaderAt, error) { return strings.NewReader("abc"), nil }, 4, Config{})
	if _, err := l.Hash(t.Context()); err == nil {
		t.Error("a file that became shorter has a hash")
	}
	f, err := l.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4), 0); err == nil {
		t.Error("a file that became shorter can be read")
	}
}

func BenchmarkHash(b *testing.B) {
	data := make([]byte, 256<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := layout(data, Config{}).Hash(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleHash_String() {
	fmt.Println(Hash{0: 1, 31: 0xff})
	// Output: 000000000000000100000000000000000000000000000000ff00000000000000
}
