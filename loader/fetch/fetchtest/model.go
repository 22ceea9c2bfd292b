// Package fetchtest has what tests of the reading side share: small models, a source in memory that
// can fail in every way a bucket does, and the suite that every source must pass.
package fetchtest

import (
	"crypto/sha256"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

// ChunkSize is the size in bytes of the chunks of test models: the smallest one that a manifest allows.
const ChunkSize = 64 << 10

// Commit is the commit of test models.
const Commit = "093f9f388b31de276ce2de164bdc2081324b9767"

// Model is a staged model.
type Model struct {
	Manifest *manifest.Manifest
	Raw      []byte            // of the manifest
	Objects  map[string][]byte // all objects of the bucket, the manifest and the ref main among them
}

// Ref returns the reference of the model's default branch.
func (m *Model) Ref() manifest.Reference { return manifest.Reference{Repo: m.Manifest.Model.Repo} }

// Content returns the bytes of a file.
func (m *Model) Content(path string) []byte { return m.Objects[m.Manifest.Model.Object(path)] }

// NewModel makes a model of files with random bytes, by path and size. The same arguments make the
// same bytes.
func NewModel(t testing.TB, repo string, sizes map[string]int) *Model {
	t.Helper()
	return NewModelOf(t, repo, ChunkSize, sizes)
}

// NewModelOf is NewModel with chunks of another size.
func NewModelOf(t testing.TB, repo string, chunkSize int, sizes map[string]int) *Model {
	t.Helper()
	random := rand.NewChaCha8(sha256.Sum256([]byte(repo)))
	m := &manifest.Manifest{Model: manifest.Model{Repo: repo, Commit: Commit}, ChunkSize: int64(chunkSize)}
	objects := make(map[string][]byte)
	for path, size := range sizes {
		m.Files = append(m.Files, manifest.File{Path: path, Size: int64(size)})
	}
	slices.SortFunc(m.Files, func(a, b manifest.File) int { return strings.Compare(a.Path, b.Path) })
	for i := range m.Files {
		f := &m.Files[i]
		b := make([]byte, f.Size)
		_, _ = random.Read(b) // never fails
		objects[m.Model.Object(f.Path)] = b
		f.SHA256, f.CRC32C = sha256.Sum256(b), crc32.Checksum(b, manifest.Castagnoli)
		for chunk := range slices.Chunk(b, chunkSize) {
			f.Chunks = append(f.Chunks, crc32.Checksum(chunk, manifest.Castagnoli))
		}
	}
	raw, err := manifest.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	objects[m.Model.Key()] = raw
	objects[manifest.RefKey(repo, "main")] = []byte(Commit)
	return &Model{Manifest: m, Raw: raw, Objects: objects}
}
