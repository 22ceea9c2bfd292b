package modelfs_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

const chunk = 64 << 10

// fake is a model whose chunks arrive when a test says so.
type fake struct {
	m       *manifest.Manifest
	content [][]byte
	dir     string

	mu          sync.Mutex
	have        []map[int]bool
	changed     chan struct{} // closed and replaced at every change
	failure     error
	waiting     int
	interrupted int // waits that their context ended
}

// newFake makes a model of files of these sizes. Nothing of it is there yet.
func newFake(t testing.TB, sizes map[string]int64) *fake {
	t.Helper()
	f := &fake{m: &manifest.Manifest{Model: manifest.Model{Repo: "google/gemma", Commit: "093f9f388b31de276ce2de164bdc2081324b9767"}, ChunkSize: chunk}, dir: t.TempDir(), changed: make(chan struct{})}
	for path, size := range sizes {
		f.m.Files = append(f.m.Files, manifest.File{Path: path, Size: size})
	}
	sortFiles(f.m.Files)
	for i := range f.m.Files {
		file := &f.m.Files[i]
		content := make([]byte, file.Size)
		seed := sha256.Sum256([]byte(file.Path))
		if _, err := rand.NewChaCha8(seed).Read(content); err != nil {
			t.Fatal(err)
		}
		f.content = append(f.content, content)
		f.have = append(f.have, map[int]bool{})
		file.SHA256 = sha256.Sum256(content)
		file.CRC32C = crc32.Checksum(content, manifest.Castagnoli)
		for rest := content; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
			file.Chunks = append(file.Chunks, crc32.Checksum(rest[:min(chunk, len(rest))], manifest.Castagnoli))
		}
		backing, err := os.Create(f.path(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := backing.Truncate(file.Size); err != nil {
			t.Fatal(err)
		}
		backing.Close()
	}
	if err := f.m.Validate(); err != nil {
		t.Fatal(err)
	}
	return f
}

func sortFiles(files []manifest.File) {
	for i := range files {
		for j := i; j > 0 && files[j].Path < files[j-1].Path; j-- {
			files[j], files[j-1] = files[j-1], files[j]
		}
	}
}

func (f *fake) path(i int) string { return filepath.Join(f.dir, strconv.Itoa(i)) }

func (f *fake) index(path string) int {
	for i := range f.m.Files {
		if f.m.Files[i].Path == path {
			return i
		}
	}
	panic("no file " + path)
}

// put writes a file's bytes into the backing file, in place: it is mapped, and must never be shorter.
func (f *fake) put(t testing.TB, file int, from, to int64) {
	t.Helper()
	backing, err := os.OpenFile(f.path(file), os.O_WRONLY, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer backing.Close()
	if _, err := backing.WriteAt(f.content[file][from:to], from); err != nil {
		t.Error(err)
	}
}

// deliver makes one chunk arrive.
func (f *fake) deliver(t testing.TB, file, index int) {
	t.Helper()
	off := int64(index) * chunk
	f.put(t, file, off, min(off+chunk, f.m.Files[file].Size))
	f.change(func() { f.have[file][index] = true })
}

// finish makes the rest of a file arrive.
func (f *fake) finish(t testing.TB, file int) {
	t.Helper()
	for i := range f.m.Files[file].Chunks {
		f.deliver(t, file, i)
	}
}

func (f *fake) fail(err error) { f.change(func() { f.failure = err }) }

func (f *fake) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) Manifest() *manifest.Manifest { return f.m }

func (f *fake) Complete(file int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.have[file]) == len(f.m.Files[file].Chunks)
}

func (f *fake) Open(file int) (*os.File, error) { return os.Open(f.path(file)) }

func (f *fake) Wait(ctx context.Context, file int, off, n int64) error {
	f.change(func() { f.waiting++ })
	defer f.change(func() { f.waiting-- })
	for {
		f.mu.Lock()
		changed, failure, missing := f.changed, f.failure, false
		for i := off / chunk; i <= (off+n-1)/chunk; i++ {
			missing = missing || !f.have[file][int(i)]
		}
		f.mu.Unlock()
		if !missing {
			return nil
		}
		if failure != nil {
			return failure
		}
		select {
		case <-ctx.Done():
			f.change(func() { f.interrupted++ })
			return ctx.Err()
		case <-changed:
		}
	}
}

// awaitWaiting returns when ok holds of the number of reads that wait.
func (f *fake) awaitWaiting(ok func(n int) bool) {
	for {
		f.mu.Lock()
		enough, changed := ok(f.waiting), f.changed
		f.mu.Unlock()
		if enough {
			return
		}
		<-changed
	}
}

var errGone = errors.New("the bucket has gone")

// mounted shows f at a folder of the test.
func mounted(t testing.TB, f *fake) (*modelfs.FS, string) {
	t.Helper()
	mounttest.Need(t)
	dir := t.TempDir()
	fsys, err := modelfs.Mount(dir, f, nil, slog.New(slog.NewTextHandler(testLog{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fsys.Close(); err != nil {
			t.Error(err)
		}
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	mounttest.Polled(t, filepath.Join(dir, f.m.Files[0].Path))
	fsys.ForgetOpens()
	return fsys, dir
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}
