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

	"github.com/headstart-serving/headstart/loader/fetch"
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

// memory returns size bytes at the beginning of a page.
func memory(t testing.TB, size int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// Whatever the file's size, the range, the memory and the steps, the bytes are those of the file: read past
// the page cache, through it, and in turns.
func TestDirect(t *testing.T) {
	dir := t.TempDir()
	src := open(t, dir)
	random := rand.New(rand.NewPCG(1, 1))
	into := memory(t, 4*mib)
	straight, plain := 0, 0
	for _, size := range []int{mib - 1, mib, mib + 1, mib + 4095, mib + 4096, mib + 4097, 3*mib - 1, 3 * mib, 3*mib + 511, 3*mib + 513} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(random.Uint32())
		}
		path := filepath.Join(dir, fmt.Sprint(size))
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int{0, 1, 511, 512, 4095, 4096, 4097, mib, mib + 7} {
			for _, step := range []int{300 << 10, 4096, 256 << 10, 4 * mib} {
				if off > size {
					continue
				}
				drop(t, path)
				body, err := src.Open(t.Context(), fmt.Sprint(size), int64(off), max(int64(size-off), mib))
				if err != nil {
					t.Fatal(err)
				}
				r := body.(fetch.StraightReader)
				clear(into)
				rest, mixed := into[off%8192:][:size-off+1], random.IntN(3) == 0
				got := 0
				for err == nil {
					var n int
					p := rest[got:][:min(step, len(rest)-got)]
					if mixed && random.IntN(2) == 0 {
						n, err = body.Read(p)
					} else {
						n, err = r.ReadStraight(p)
					}
					if got += n; file.LastDirect(body) {
						straight += n
					} else {
						plain += n
					}
				}
				if err != io.EOF || got != size-off || !bytes.Equal(rest[:got], content[off:]) {
					t.Errorf("size %d from %d in steps of %d: %d bytes, %v", size, off, step, got, err)
				}
				body.Close()
			}
		}
	}
	t.Logf("%d MiB past the page cache, %d MiB through it", straight/mib, plain/mib)
	if can := file.CanDirect(filepath.Join(dir, fmt.Sprint(mib))); can != (straight > 0) {
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
	p, n := memory(t, 3*mib), 0
	for err == nil {
		var got int
		got, err = body.(fetch.StraightReader).ReadStraight(p[n:])
		n += got
	}
	if n != mib+5 || err != io.EOF {
		t.Errorf("%d bytes, %v", n, err)
	}
	// Memory that is not there is an error that the engine knows.
	if err := os.Truncate(path, 4*mib); err != nil {
		t.Fatal(err)
	}
	drop(t, path)
	again, err := src.Open(t.Context(), "w", 0, 4*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := unix.Mprotect(p, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if _, err := again.(fetch.StraightReader).ReadStraight(p); !errors.Is(err, unix.EFAULT) {
		t.Errorf("%v", err)
	}
}
