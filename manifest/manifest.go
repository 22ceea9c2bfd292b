// Package manifest is the format that the writing and the reading side agree on: one JSON document
// a staged model, the commit record of its objects in the bucket.
//
// It is pure: no I/O, no client, the standard library only. Parse accepts exactly the bytes that
// Marshal makes and nothing else (no unknown field, no other order, spelling or white space), so a
// manifest's sha256 names it, and staging the same commit again gives the same bytes, in any
// bucket. That is why neither an object's generation nor its key stands in it: the key follows
// from the model and the path ([Model.Object]), and a reader pins the generation it first meets.
//
// Layout of a bucket, below the prefix of its URL:
//
//	<org>/<name>/<commit>/<path>              the repository's files, byte for byte
//	.headstart/<org>/<name>/<commit>.json     the manifest, written last
//	.headstart/<org>/<name>/<commit>.order    the order in which readers want its chunks, if it was learnt
//	.headstart/<org>/<name>/refs/<ref>        the commit that a branch or tag pointed to
//	.headstart/parts/…                        pieces of files that are being staged
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
)

// Version is the version of the format that this package writes and reads.
const Version = 1

// ChunkSize is the size in bytes that new manifests divide files by.
const ChunkSize = 16 << 20

// MaxSize is the largest manifest in bytes that Parse reads: 16 TiB of weights in chunks of 16 MiB.
const MaxSize = 16 << 20

// Manifest says what a staged model consists of.
type Manifest struct {
	Model     Model
	ChunkSize int64  // bytes; a power of two from 64 KiB to 1 GiB
	Files     []File // in the order of their paths' bytes
}

// File is one file of the repository and one object in the bucket.
type File struct {
	Path   string // slash-separated, relative, local
	Size   int64  // bytes
	SHA256 Digest
	CRC32C uint32   // of the whole file (Castagnoli)
	Chunks []uint32 // CRC32C of each chunk; the last one may be short
}

// Chunk is the unit of transfer and of check. It is derived, never stored.
type Chunk struct {
	File   int   // index into [Manifest.Files]
	Index  int   // index into [File.Chunks]
	Offset int64 // bytes from the file's start
	Size   int64 // bytes
	CRC32C uint32
}

// Digest is a sha256.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) || strings.ToLower(s) != s {
		return d, fmt.Errorf("%q is not a sha256 of 64 lower-case hex digits", clip(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, fmt.Errorf("%q is not a sha256 of 64 lower-case hex digits", clip(s))
	}
	return d, nil
}

// MismatchError says that bytes are not the ones a manifest or the Hub names.
type MismatchError struct {
	Path      string
	Offset    int64  // of the first byte that was checked
	Size      int64  // number of bytes that were checked
	Sum       string // "sha256", "crc32c", "git sha1" or "size"
	Want, Got string
}

func (e *MismatchError) Error() string {
	if e.Sum == "size" {
		return fmt.Sprintf("%s: size %s, want %s", e.Path, e.Got, e.Want)
	}
	return fmt.Sprintf("%s: bytes %d to %d: %s is %s, want %s", e.Path, e.Offset, e.Offset+e.Size, e.Sum, e.Got, e.Want)
}

// Size returns the sum of the files' sizes in bytes.
func (m *Manifest) Size() int64 {
	var n int64
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// File returns the file at path, or nil.
func (m *Manifest) File(path string) *File {
	i, ok := slices.BinarySearchFunc(m.Files, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return nil
	}
	return &m.Files[i]
}

// ChunksOf iterates over the chunks of Files[file] in the order of their offsets.
func (m *Manifest) ChunksOf(file int) iter.Seq[Chunk] {
	return func(yield func(Chunk) bool) {
		f := &m.Files[file]
		for i, sum := range f.Chunks {
			off := int64(i) * m.ChunkSize
			if !yield(Chunk{File: file, Index: i, Offset: off, Size: min(m.ChunkSize, f.Size-off), CRC32C: sum}) {
				return
			}
		}
	}
}

// Check compares the CRC32C of a chunk's bytes with the manifest's.
func (m *Manifest) Check(c Chunk, sum uint32) error {
	if sum == c.CRC32C {
		return nil
	}
	return &MismatchError{Path: m.Files[c.File].Path, Offset: c.Offset, Size: c.Size, Sum: "crc32c",
		Want: fmt.Sprintf("%08x", c.CRC32C), Got: fmt.Sprintf("%08x", sum)}
}

// NumChunks returns the number of chunks of a file of size bytes.
func NumChunks(size, chunkSize int64) int64 {
	return size/chunkSize + min(1, size%chunkSize)
}

// Validate reports the first thing that is wrong with m and which entry it is in.
func (m *Manifest) Validate() error { return mark(m.check()) }

func (m *Manifest) check() error {
	if err := m.Model.check(); err != nil {
		return err
	}
	if m.ChunkSize < 64<<10 || m.ChunkSize > 1<<30 || m.ChunkSize&(m.ChunkSize-1) != 0 {
		return fmt.Errorf("chunk_size %d is not a power of two from 64 KiB to 1 GiB", m.ChunkSize)
	}
	if len(m.Files) == 0 {
		return errors.New("the model has no files")
	}
	var total int64
	paths := make([]string, len(m.Files))
	for i := range m.Files {
		f := &m.Files[i]
		paths[i] = f.Path
		if err := checkPath(f.Path); err != nil {
			return fmt.Errorf("file %d, %q: %w", i, clip(f.Path), err)
		}
		if i > 0 && f.Path <= m.Files[i-1].Path {
			return fmt.Errorf("file %d, %q: does not come after %q", i, clip(f.Path), clip(m.Files[i-1].Path))
		}
		if err := f.validate(m.ChunkSize); err != nil {
			return fmt.Errorf("file %d, %q: %w", i, clip(f.Path), err)
		}
		if f.Size > math.MaxInt64-total {
			return fmt.Errorf("file %d, %q: the sizes add up to more than 2⁶³-1 bytes", i, clip(f.Path))
		}
		total += f.Size
	}
	return checkPaths(paths)
}

func (f *File) validate(chunkSize int64) error {
	if f.Size < 0 {
		return fmt.Errorf("size %d is negative", f.Size)
	}
	if n := NumChunks(f.Size, chunkSize); n != int64(len(f.Chunks)) {
		return fmt.Errorf("%d chunks for %d bytes in chunks of %d: want %d", len(f.Chunks), f.Size, chunkSize, n)
	}
	var sum uint32
	for i, c := range f.Chunks {
		sum = CombineCRC32C(sum, c, min(chunkSize, f.Size-int64(i)*chunkSize))
	}
	if sum != f.CRC32C {
		return fmt.Errorf("crc32c %08x, but its chunks add up to %08x", f.CRC32C, sum)
	}
	return nil
}

// Marshal returns the manifest's one encoding. It fails where Validate does, and above MaxSize.
func Marshal(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", m.Model, err)
	}
	b := encode(m)
	if len(b) > MaxSize {
		return nil, mark(fmt.Errorf("manifest of %s: %d files make %d bytes, more than %d that readers take", m.Model, len(m.Files), len(b), MaxSize))
	}
	return b, nil
}

// encode writes one line a file, so that a person can read and compare manifests.
func encode(m *Manifest) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\"version\":%d,\"model\":%s,\"commit\":%s,\"chunk_size\":%d,\"files\":[", Version, quote(m.Model.Repo), quote(m.Model.Commit), m.ChunkSize)
	for i := range m.Files {
		f := &m.Files[i]
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "\n{\"path\":%s,\"size\":%d,\"sha256\":\"%s\",\"crc32c\":\"%08x\",\"chunks\":\"", quote(f.Path), f.Size, f.SHA256, f.CRC32C)
		for _, c := range f.Chunks {
			fmt.Fprintf(&b, "%08x", c)
		}
		b.WriteString("\"}")
	}
	b.WriteString("\n]}\n")
	return b.Bytes()
}

func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic("manifest: a string that does not encode: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

type wireManifest struct {
	Version   int        `json:"version"`
	Model     string     `json:"model"`
	Commit    string     `json:"commit"`
	ChunkSize int64      `json:"chunk_size"`
	Files     []wireFile `json:"files"`
}

type wireFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	CRC32C string `json:"crc32c"`
	Chunks string `json:"chunks"` // the chunks' sums one after the other, 8 digits each
}

// VersionError says that a manifest is of a version this package does not read.
type VersionError struct{ Version int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("manifest version %d, this headstart reads version %d: use the headstart that staged the model, or a newer one", e.Version, Version)
}

// Parse reads a manifest. Data is hostile: whatever is not exactly what Marshal makes is an error
// that says which entry is wrong. The error is a [*VersionError] where only the version differs.
func Parse(data []byte) (*Manifest, error) {
	m, err := parse(data)
	if err != nil {
		return nil, mark(fmt.Errorf("parsing a manifest: %w", err))
	}
	return m, nil
}

func parse(data []byte) (*Manifest, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), MaxSize)
	}
	// The version is read alone first: a newer version may have fields that this one lacks.
	var v struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	if v.Version == nil {
		return nil, errors.New("it has no version")
	}
	if *v.Version != Version {
		return nil, &VersionError{Version: *v.Version}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var w wireManifest
	if err := d.Decode(&w); err != nil {
		return nil, err
	}
	m := &Manifest{Model: Model{Repo: w.Model, Commit: w.Commit}, ChunkSize: w.ChunkSize, Files: make([]File, len(w.Files))}
	for i := range w.Files {
		f, err := w.Files[i].file()
		if err != nil {
			return nil, fmt.Errorf("file %d, %q: %w", i, clip(w.Files[i].Path), err)
		}
		m.Files[i] = f
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if i := firstDifference(encode(m), data); i >= 0 {
		return nil, fmt.Errorf("byte %d: not the encoding that headstart writes (a key twice, another order, other white space?)", i)
	}
	return m, nil
}

func (w *wireFile) file() (File, error) {
	sha, err := ParseDigest(w.SHA256)
	if err != nil {
		return File{}, err
	}
	whole, err := parseSums(w.CRC32C)
	if err != nil || len(whole) != 1 {
		return File{}, fmt.Errorf("crc32c %q is not 8 lower-case hex digits", clip(w.CRC32C))
	}
	chunks, err := parseSums(w.Chunks)
	if err != nil {
		return File{}, fmt.Errorf("chunks: %w", err)
	}
	return File{Path: w.Path, Size: w.Size, SHA256: sha, CRC32C: whole[0], Chunks: chunks}, nil
}

func parseSums(s string) ([]uint32, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return nil, fmt.Errorf("%q is not a multiple of 8 hex digits", clip(s))
	}
	sums := make([]uint32, 0, len(b)/4)
	for len(b) > 0 {
		sums = append(sums, uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]))
		b = b[4:]
	}
	return sums, nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Sum returns the digest that pins a manifest: the sha256 of its bytes.
func Sum(data []byte) Digest { return sha256.Sum256(data) }
