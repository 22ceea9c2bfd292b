package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/file"
)

const mib = 1 << 20

// drop takes a file out of the page cache.
func drop(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

// Whatever the file's size and the range, the bytes are those of the file, read in whatever steps, past the
// page cache and through it.
func TestDirect(t *testing.T) {
	dir := t.TempDir()
	src := open(t, dir)
	random := rand.NewChaCha8([32]byte{})
	ways := map[bool]int{}
	for _, size := range []int{mib - 1, mib, mib + 1, mib + 4095, mib + 4096, mib + 4097, 3*mib - 1, 3 * mib, 3*mib + 511, 3*mib + 513} {
		content := make([]byte, size)
		_, _ = random.Read(content) // never fails
		path := filepath.Join(dir, fmt.Sprint(size))
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int{0, 1, 511, 512, 4095, 4096, 4097, mib, mib + 7} {
			for _, step := range []int{300, 4096, 256 << 10, 4 * mib} {
				if off > size {
					continue
				}
				drop(t, path)
				body, err := src.Open(t.Context(), fmt.Sprint(size), int64(off), max(int64(size-off), mib))
				if err != nil {
					t.Fatal(err)
				}
				ways[file.IsDirect(body)]++
				var got bytes.Buffer
				_, err = io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{body}, make([]byte, step))
				if err != nil || !bytes.Equal(got.Bytes(), content[off:]) {
					t.Errorf("size %d from %d in steps of %d: %d bytes, %v", size, off, step, got.Len(), err)
				}
				body.Close()
			}
		}
	}
	t.Logf("%d ranges past the page cache, %d through it", ways[true], ways[false])
	if can := file.CanDirect(filepath.Join(dir, fmt.Sprint(mib))); can != (ways[true] > 0) || can && ways[false] > 0 {
		t.Errorf("direct reads possible: %v", can)
	}
}

// What is in the page cache is read from there, and so is what is small.
func TestCached(t *testing.T) {
	dir := t.TempDir()
	src := open(t, dir)
	path := filepath.Join(dir, "w")
	if err := os.WriteFile(path, make([]byte, 4*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	direct := func(off, n int64) bool {
		t.Helper()
		body, err := src.Open(t.Context(), "w", off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		return file.IsDirect(body)
	}
	if direct(0, 4*mib) {
		t.Error("cached bytes are read from the disk")
	}
	drop(t, path)
	if direct(0, mib-1) {
		t.Error("a small range is read past the page cache")
	}
	if !file.CanDirect(path) {
		return
	}
	if !direct(0, 4*mib) {
		t.Error("bytes that are not cached are read through the cache")
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if direct(0, 4*mib) {
		t.Error("cached bytes are read from the disk")
	}
}

// A range in a file that somebody cuts shorter ends early.
func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	src := open(t, dir)
	path := filepath.Join(dir, "w")
	if err := os.WriteFile(path, make([]byte, 4*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	drop(t, path)
	body, err := src.Open(t.Context(), "w", mib, 3*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := os.Truncate(path, 2*mib+5); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(body, make([]byte, 3*mib)); n != mib+5 || err != io.ErrUnexpectedEOF {
		t.Errorf("%d bytes, %v", n, err)
	}
}
