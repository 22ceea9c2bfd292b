package stager

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

// Sizes of chunks and parts in bytes.
const ten, twenty = 10, 20

// partsOfBytes returns the parts of data with their notes, as a run would have stored them.
func partsOfBytes(f RemoteFile, data []byte) []Part {
	s := newSums(f)
	var parts []Part
	for off := 0; off < len(data); off += twenty {
		d := data[off:min(off+twenty, len(data))]
		n := note{Before: s.state()}
		for c := range slices.Chunk(d, ten) {
			n.Chunks = append(n.Chunks, crc32.Checksum(c, manifest.Castagnoli))
		}
		s.Write(d)
		n.After = s.state()
		parts = append(parts, Part{Offset: int64(off), Size: int64(len(d)), CRC32C: crc32.Checksum(d, manifest.Castagnoli), Note: n.marshal()})
	}
	return parts
}

func remote(n int) (RemoteFile, []byte) {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(data)
	return RemoteFile{Path: "f", Size: int64(n), SHA256: new(manifest.Digest)}, data
}

// TestPlanDivides checks the division of files at the edges of parts.
func TestPlanDivides(t *testing.T) {
	for _, n := range []int{0, 1, twenty - 1, twenty, twenty + 1, 2 * twenty, 2*twenty + 1, 5*twenty - 1} {
		f, _ := remote(n)
		end := int64(0)
		for _, p := range plan(f, nil, ten, twenty) {
			if p.Offset != end || p.Size < 1 || p.Size > twenty || p.have != nil {
				t.Errorf("%d bytes: %+v after %d", n, p, end)
			}
			end += p.Size
		}
		if end != int64(n) {
			t.Errorf("%d bytes: the parts end at %d", n, end)
		}
	}
}

// TestPlanTakesOver says which of the parts that are there count.
func TestPlanTakesOver(t *testing.T) {
	f, data := remote(5*twenty + 3)
	all := partsOfBytes(f, data)
	other := slices.Clone(data)
	other[0] ^= 1
	wrong := partsOfBytes(f, other)
	git := f
	git.SHA256 = nil
	damaged := func(p Part, damage func(*Part)) Part {
		p.Note = bytes.Clone(p.Note)
		damage(&p)
		return p
	}
	for _, test := range []struct {
		name  string
		file  RemoteFile
		there []Part
		want  string // x: taken over
	}{
		{"nothing", f, nil, "......"},
		{"all", f, all, "xxxxxx"},
		{"the first three", f, all[:3], "xxx..."},
		{"all but the first", f, all[1:], ".xxxxx"},
		{"all but one", f, slices.Concat(all[:2], all[3:]), "xx.xxx"},
		{"in another order", f, []Part{all[4], all[0]}, "x...x."},
		{"first of other bytes, behind it none", f, wrong[:1], "x....."},
		{"first of other bytes: the rest does not follow", f, slices.Concat(wrong[:1], all[1:]), "x.xxxx"},
		{"hashes of another kind", git, all, "......"},
		{"another offset", f, []Part{damaged(all[0], func(p *Part) { p.Offset = 1 })}, "......"},
		{"another size", f, []Part{damaged(all[0], func(p *Part) { p.Size-- })}, "......"},
		{"another sum", f, []Part{damaged(all[0], func(p *Part) { p.CRC32C++ })}, "......"},
		{"no note", f, []Part{damaged(all[0], func(p *Part) { p.Note = nil })}, "......"},
		{"a note that is cut", f, []Part{damaged(all[0], func(p *Part) { p.Note = p.Note[:len(p.Note)-1] })}, "......"},
		{"the note of another part", f, []Part{damaged(all[0], func(p *Part) { p.Note = all[1].Note })}, "......"},
	} {
		var got []byte
		for _, p := range plan(test.file, test.there, ten, twenty) {
			if p.have != nil {
				got = append(got, 'x')
			} else {
				got = append(got, '.')
			}
		}
		if string(got) != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestSumsGoOn takes up hashes at every byte.
func TestSumsGoOn(t *testing.T) {
	f, data := remote(200)
	for _, f := range []RemoteFile{f, {Path: "f", Size: f.Size, GitSHA1: "x"}} {
		whole := newSums(f)
		whole.Write(data)
		for n := range data {
			first, second := newSums(f), newSums(f)
			first.Write(data[:n])
			if err := second.restore(first.state()); err != nil {
				t.Fatal(err)
			}
			second.Write(data[n:])
			if !bytes.Equal(second.state(), whole.state()) || second.digest() != whole.digest() {
				t.Errorf("taken up at %d: other sums", n)
			}
		}
		state := whole.state()
		for n := range state {
			if newSums(f).restore(state[:n]) == nil {
				t.Errorf("the first %d bytes of a state are accepted", n)
			}
		}
		if newSums(f).restore(append(state, 0)) == nil {
			t.Error("a state with a byte more is accepted")
		}
	}
}

func FuzzNote(f *testing.F) {
	file, data := remote(2 * twenty)
	for _, p := range partsOfBytes(file, data) {
		f.Add(p.Note)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p := partsOfBytes(file, data)[1]
		p.Note = text
		for _, got := range plan(file, []Part{p}, ten, twenty) {
			if got.have == nil {
				continue
			}
			// What is taken over has sums that fit the part.
			if combine(got.have.Chunks, p.Size, ten) != p.CRC32C || newSums(file).restore(got.have.After) != nil {
				t.Errorf("%s is taken over", text)
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	file, data := remote(3 * ten)
	var sums []uint32
	for c := range slices.Chunk(data, ten) {
		sums = append(sums, crc32.Checksum(c, manifest.Castagnoli))
	}
	good := manifest.File{Path: file.Path, Size: file.Size, CRC32C: combine(sums, file.Size, ten), Chunks: sums}
	f.Add(marshalRecord(good, ten))
	f.Add([]byte(`{"path":"f","size":30,"chunks":"zz"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseRecord(text, file, ten)
		if err != nil {
			return
		}
		if got.Size != file.Size || got.SHA256 != *file.SHA256 || combine(got.Chunks, got.Size, ten) != got.CRC32C {
			t.Errorf("%s is accepted as %+v", text, got)
		}
		if again, err := parseRecord(marshalRecord(got, ten), file, ten); err != nil || again.CRC32C != got.CRC32C {
			t.Errorf("%s, written again: %v", text, err)
		}
	})
}
