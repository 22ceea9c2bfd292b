package file_test

import (
	"context"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// BenchmarkDisk reads a file of 512 MiB that is on a disk and not in the page cache, in chunks of 16 MiB by
// eight streams, and sums it: as the source does, and through the page cache. Set TMPDIR to a directory
// on the disk.
func BenchmarkDisk(b *testing.B) {
	const size, chunk, streams = 512 * mib, 16 * mib, 8
	dir := b.TempDir()
	path := filepath.Join(dir, "w")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), size); err != nil {
		b.Fatal(err)
	}
	src := open(b, dir)
	into := memory(b, size)
	_ = unix.Madvise(into, unix.MADV_HUGEPAGE) // as a cache on huge pages is; without it, slower
	clear(into)                                // have it given by the host
	for name, read := range map[string]func(off int64) (io.ReadCloser, error){
		"source":     func(off int64) (io.ReadCloser, error) { return src.Open(context.Background(), "w", off, chunk) },
		"page cache": func(off int64) (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, off, chunk)), nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				drop(b, path)
				before := cpu(b)
				b.StartTimer()
				offsets := make(chan int64, size/chunk)
				for off := int64(0); off < size; off += chunk {
					offsets <- off
				}
				close(offsets)
				var wg sync.WaitGroup
				for range streams {
					wg.Go(func() {
						for off := range offsets {
							body, err := read(off)
							if err != nil {
								b.Error(err)
								return
							}
							var sum uint32
							straight, _ := body.(fetch.StraightReader)
							for p := into[off : off+chunk]; len(p) > 0; {
								var n int
								var err error
								if straight != nil {
									n, err = straight.ReadStraight(p)
								} else {
									n, err = body.Read(p[:min(len(p), 256<<10)])
								}
								if sum = crc32.Update(sum, manifest.Castagnoli, p[:n]); err != nil {
									b.Error(err)
									return
								}
								p = p[n:]
							}
							body.Close()
						}
					})
				}
				wg.Wait()
				used += cpu(b) - before
			}
			b.ReportMetric(used.Seconds()/(float64(b.N)*size/1e9), "cpu-s/GB")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
