package cache_test

import (
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/manifest"
)

// BenchmarkDisk fills an entry of 1 GiB on the disk of HEADSTART_BENCH_DIR at memory's speed and syncs
// it. It reports the seconds of both, and what had not been given to the disk when the entry was sealed.
func BenchmarkDisk(b *testing.B) {
	dir := os.Getenv("HEADSTART_BENCH_DIR")
	if dir == "" {
		b.Skip("set HEADSTART_BENCH_DIR to a directory with 1.1 GB on a disk")
	}
	const chunks = 64
	content := make([]byte, manifest.ChunkSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content) // never fails
	m := &manifest.Manifest{Model: manifest.Model{Repo: "org/bench", Commit: "093f9f388b31de276ce2de164bdc2081324b9767"}, ChunkSize: manifest.ChunkSize}
	f := manifest.File{Path: "w.safetensors", Size: chunks * manifest.ChunkSize}
	for range chunks {
		sum := crc32.Checksum(content, manifest.Castagnoli)
		f.Chunks = append(f.Chunks, sum)
		f.CRC32C = manifest.CombineCRC32C(f.CRC32C, sum, manifest.ChunkSize)
	}
	m.Files = []manifest.File{f}
	raw, err := manifest.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(dir, "cache"), quiet())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var filled, synced time.Duration
	dirty := 0
	for b.Loop() {
		e, err := c.Entry(m, raw)
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		for i := range chunks {
			p, err := e.Chunk(0, i)
			if err != nil {
				b.Fatal(err)
			}
			copy(p, content)
			if err := e.Commit(0, i); err != nil {
				b.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // a link of 13 Gbit/s, at most
		}
		dirty += dirtyPages(b, e.Path(0))
		if err := e.Seal(); err != nil {
			b.Fatal(err)
		}
		filled += time.Since(begin)
		begin = time.Now()
		if err := e.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
		synced += time.Since(begin)
		if err := c.Remove(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(filled.Seconds()/float64(b.N), "fill-s")
	b.ReportMetric(synced.Seconds()/float64(b.N), "sync-s")
	b.ReportMetric(float64(dirty)*float64(os.Getpagesize())/1e6/float64(b.N), "dirty-MB")
}
