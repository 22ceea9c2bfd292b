// Package gemma makes repositories that look like Google's Gemma 3 on the Hub and hold noise: the same file names,
// config, index, tensor names, shapes, types, split into files and sizes, with a working tokenizer of the same size.
// They serve to try everything that moves, checks and loads a model without moving the model.
//
//	repo, err := gemma.New("27b", 0)    // google/gemma-3-27b-it, 55 GB, on no disk
//	file, err := repo.Open("model-00003-of-00012.safetensors")
//	n, err := file.ReadAt(p, 4<<30)     // any offset, any length
//
// The bytes of the weights are a function of size, seed, file and offset. They are made while they are read, at several
// times the speed of a memory copy between machines, so that they are never what a measurement measures: normally
// distributed bfloat16 values like those of trained weights, with no two blocks of 4 KiB alike, hence no two chunks.
// Two seeds have no block in common; all else is the same.
//
// What it does not imitate: what a model knows. Transformers and vLLM load it and answer gibberish, always the same.
// TestReaders shows it when HEADSTART_PYTHON names a Python that has them.
//
// The bytes are frozen: sums.txt holds the sha256 of every large file for seed 0. Whoever changes them raises
// generation, which gives the repositories other commits, and runs
//
//	go test -run TestSums -update
package gemma

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/headstart-serving/headstart/stager/hub"
)

// generation tells the bytes of one version of this package from those of another.
const generation = 1

// Repo is a synthetic repository. It is immutable and safe for concurrent use.
type Repo struct {
	size   string
	commit string
	files  []hub.File
	open   map[string]func() io.ReaderAt
}

// New returns the repository of a size of Gemma 3: 270m, 1b, 4b, 12b or 27b. Nothing large is made before it is read.
func New(size string, seed uint64) (*Repo, error) {
	d, ok := sizeOf(size)
	if !ok {
		return nil, fmt.Errorf("gemma: there is no size %q: take %s", size, sizeNames)
	}
	commit := sha1.Sum(fmt.Appendf(nil, "commit %d %s %d", generation, size, seed))
	r := &Repo{size: size, commit: hex.EncodeToString(commit[:]), open: map[string]func() io.ReaderAt{}}
	shards := split(d.tensors())
	for path, content := range d.smallFiles(size, shards) {
		r.small(path, content)
	}
	r.large("tokenizer.json", tokenizerJSONSize, true, func() io.ReaderAt {
		b, _ := tokenizer()
		return bytes.NewReader(b)
	})
	r.large("tokenizer.model", tokenizerModelSize, true, func() io.ReaderAt {
		_, b := tokenizer()
		return bytes.NewReader(b)
	})
	layouts := make([]layout, len(shards))
	weights := sync.OnceValue(func() (files []*shard) {
		pools := newPools()
		for _, l := range layouts {
			files = append(files, newShard(l, pools, func(name string) uint64 { return tensorKey(size, seed, name) }))
		}
		return files
	})
	for i, list := range shards {
		layouts[i] = newLayout(list)
		r.large(shardName(i, len(shards)), layouts[i].size, seed == 0, func() io.ReaderAt { return weights()[i] })
	}
	slices.SortFunc(r.files, func(a, b hub.File) int { return strings.Compare(a.Path, b.Path) })
	return r, nil
}

func (r *Repo) small(path string, content []byte) {
	r.open[path] = func() io.ReaderAt { return bytes.NewReader(content) }
	r.files = append(r.files, hub.File{
		Path:    path,
		Size:    int64(len(content)),
		SHA256:  func() ([32]byte, error) { return sha256.Sum256(content), nil },
		GitSHA1: hub.GitSHA1(content),
	})
}

// large adds an LFS file. Its digest is looked up when it is a known one, else found by reading it, once.
func (r *Repo) large(path string, size int64, known bool, open func() io.ReaderAt) {
	r.open[path] = open
	r.files = append(r.files, hub.File{Path: path, Size: size, LFS: true, SHA256: sync.OnceValues(func() ([32]byte, error) {
		if sum, ok := knownSum(r.size + "/" + path); ok && known {
			return sum, nil
		}
		return digest(open(), size)
	})})
}

// digest reads a whole file.
func digest(file io.ReaderAt, size int64) ([32]byte, error) {
	h := sha256.New()
	// A buffer that stays in a core's cache between being made and being hashed.
	n, err := io.CopyBuffer(h, io.NewSectionReader(file, 0, size), make([]byte, 256<<10))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return [32]byte(h.Sum(nil)), err
}

// sums is written as sha256sum does: digest, two spaces, size and path.
//
//go:embed sums.txt
var sums string

func knownSum(name string) (sum [32]byte, ok bool) {
	for line := range strings.Lines(sums) {
		digits, rest, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if n, err := hex.Decode(sum[:], []byte(digits)); rest == name && err == nil && n == len(sum) {
			return sum, true
		}
	}
	return sum, false
}

// Name is "google/gemma-3-270m-it", or that of another size.
func (r *Repo) Name() string { return "google/gemma-3-" + r.size + "-it" }

// Commit is 40 hexadecimal digits that tell size and seed apart.
func (r *Repo) Commit() string { return r.commit }

// LastModified is the same for all: nothing about a repository depends on when it is asked for.
func (r *Repo) LastModified() time.Time {
	return time.Date(2025, time.March, 21, 20, 29, 2, 0, time.UTC)
}

// Files lists the files by path.
func (r *Repo) Files() []hub.File { return slices.Clone(r.files) }

// Open gives access to a file's bytes. It fails only for a path that is not there, with fs.ErrNotExist.
func (r *Repo) Open(path string) (io.ReaderAt, error) {
	open, ok := r.open[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return open(), nil
}
