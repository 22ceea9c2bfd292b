package modelfs_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// The file of the benchmarks. Larger than a processor's caches; the page cache holds it.
const benchSize = 256 << 20

// benchmark reads a whole file of a new mount once an iteration.
func benchmark(b *testing.B, complete bool, read func(path string)) {
	f := newFake(b, map[string]int64{"a": benchSize, "other": 1})
	f.finish(b, f.index("other"))
	a := f.index("a")
	for i := range f.m.Files[a].Chunks[1:] {
		f.deliver(b, a, i+1)
	}
	if complete {
		f.deliver(b, a, 0)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		fsys, dir := mounted(b, f)
		if !complete {
			// The last chunk comes when the first reader asks: the file is served.
			go func() {
				f.awaitWaiting(func(n int) bool { return n > 0 })
				f.deliver(b, a, 0)
			}()
		}
		read(filepath.Join(dir, "a"))
		if err := fsys.Unmount(); err != nil {
			b.Error(err)
		}
		<-fsys.Done()
		b.ReportMetric(float64(fsys.Stats().Reads), "reads")
		f.change(func() { delete(f.have[a], map[bool]int{true: -1, false: 0}[complete]) })
	}
}

func readAll(b *testing.B) func(string) {
	buf := make([]byte, 1<<20)
	return func(path string) {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf); n != benchSize || err != nil {
			b.Error(n, err)
		}
	}
}

func BenchmarkServedRead(b *testing.B)      { benchmark(b, false, readAll(b)) }
func BenchmarkPassthroughRead(b *testing.B) { benchmark(b, true, readAll(b)) }

func BenchmarkNativeRead(b *testing.B) {
	f := newFake(b, map[string]int64{"a": benchSize})
	f.finish(b, 0)
	b.SetBytes(benchSize)
	read := readAll(b)
	for b.Loop() {
		read(f.path(0))
	}
}
