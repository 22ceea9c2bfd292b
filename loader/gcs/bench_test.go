package gcs_test

import (
	"bufio"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/gcs"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/bucket"
)

// benchDir names a directory for the benchmark's 2 GB, a tmpfs with huge=always for the figures that
// matter. The server of the benchmark is this binary again with benchServe set to its directory.
const (
	benchDir   = "HEADSTART_BENCH_DIR"
	benchServe = "HEADSTART_BENCH_SERVE"
)

const (
	benchFile    = 448 << 20 // bytes of each of two files
	benchStreams = 8         // the engine's default
)

// BenchmarkCold compares, over loopback and from a server in a process of its own, a load by the
// engine with the least that any reader must do: as many streams, each receiving a chunk into a
// mapping and computing its CRC32C. Both include making and allocating the files. cpu-s/GB is this
// process's alone.
func BenchmarkCold(b *testing.B) {
	dir := os.Getenv(benchDir)
	if dir == "" {
		b.Skip("set " + benchDir + " to a directory with 2 GB, best a tmpfs with huge=always")
	}
	base := startServer(b, dir)
	m, raw := benchModel(b, base)
	touch(b, dir)
	b.Run("bare", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchStreams}}
		defer client.CloseIdleConnections()
		measure(b, func() { bare(b, client, base, filepath.Join(dir, "bare"), m) })
	})
	b.Run("engine", func(b *testing.B) {
		b.Setenv("STORAGE_EMULATOR_HOST", base)
		src, err := gcs.New(b.Context(), name, "")
		if err != nil {
			b.Fatal(err)
		}
		defer src.Close()
		c, err := cache.Open(filepath.Join(dir, "cache"), quiet())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		e := fetch.New(fetch.Config{Source: src, Log: quiet()})
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		measure(b, func() {
			entry, err := c.Entry(m, raw)
			if err != nil {
				b.Fatal(err)
			}
			l := e.Start(entry)
			<-l.Done()
			if l.Err() != nil {
				b.Fatal(l.Err())
			}
			b.StopTimer()
			if err := c.Remove(entry); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		})
		cancel()
		<-ended
	})
}

// measure runs one round after the other and reports the rate and this process's CPU time.
func measure(b *testing.B, round func()) {
	b.SetBytes(2 * benchFile)
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		round()
	}
	gb := float64(b.N) * 2 * benchFile / 1e9
	b.ReportMetric((cpu(b)-before).Seconds()/gb, "cpu-s/GB")
	b.ReportMetric(gb/b.Elapsed().Seconds(), "GB/s")
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// touch has the memory of one round given by the host before anything is timed.
func touch(b *testing.B, dir string) {
	path := filepath.Join(dir, "touch")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(path)
	defer f.Close()
	block := make([]byte, 1<<20)
	for range 2 * benchFile >> 20 {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
}

// bare is the least that a checked load costs.
func bare(b *testing.B, client *http.Client, base, dir string, m *manifest.Manifest) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	type job struct {
		url string
		c   manifest.Chunk
		p   []byte
	}
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range benchStreams {
		wg.Go(func() {
			for j := range jobs {
				if err := get(client, j.url, j.c, j.p); err != nil {
					b.Error(err)
				}
			}
		})
	}
	var mappings [][]byte
	for i, f := range m.Files {
		file, err := os.Create(filepath.Join(dir, f.Path))
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Fallocate(int(file.Fd()), 0, 0, f.Size); err != nil {
			b.Fatal(err)
		}
		mapping, err := unix.Mmap(int(file.Fd()), 0, int(f.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			b.Fatal(err)
		}
		file.Close()
		mappings = append(mappings, mapping)
		for c := range m.ChunksOf(i) {
			jobs <- job{base + "/" + name + "/" + m.Model.Object(f.Path), c, mapping[c.Offset : c.Offset+c.Size]}
		}
	}
	close(jobs)
	wg.Wait()
	for _, mapping := range mappings {
		if err := unix.Munmap(mapping); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}

func get(client *http.Client, url string, c manifest.Chunk, p []byte) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", c.Offset, c.Offset+c.Size-1))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var sum uint32
	for len(p) > 0 {
		n, err := res.Body.Read(p[:min(len(p), 256<<10)])
		sum = crc32.Update(sum, manifest.Castagnoli, p[:n])
		p = p[n:]
		if err != nil && len(p) > 0 {
			return err
		}
	}
	if sum != c.CRC32C {
		return fmt.Errorf("chunk %d of %s: wrong bytes", c.Index, url)
	}
	return nil
}

// benchModel uploads a model of two files.
func benchModel(b *testing.B, base string) (*manifest.Manifest, []byte) {
	m := &manifest.Manifest{Model: manifest.Model{Repo: "org/bench", Commit: "093f9f388b31de276ce2de164bdc2081324b9767"}, ChunkSize: manifest.ChunkSize}
	for i, path := range []string{"model-1.safetensors", "model-2.safetensors"} {
		f := manifest.File{Path: path, Size: benchFile}
		random := rand.NewChaCha8([32]byte{byte(i)})
		pr, pw := io.Pipe()
		go func() {
			p := make([]byte, manifest.ChunkSize)
			for range benchFile / manifest.ChunkSize {
				_, _ = random.Read(p) // never fails
				sum := crc32.Checksum(p, manifest.Castagnoli)
				f.Chunks = append(f.Chunks, sum)
				f.CRC32C = manifest.CombineCRC32C(f.CRC32C, sum, manifest.ChunkSize)
				if _, err := pw.Write(p); err != nil {
					return
				}
			}
			pw.Close()
		}()
		res, err := http.Post(fmt.Sprintf("%s/upload/storage/v1/b/%s/o?uploadType=media&name=%s", base, name, m.Model.Object(path)), "application/octet-stream", pr)
		if err != nil {
			b.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			b.Fatal(res.Status)
		}
		m.Files = append(m.Files, f)
	}
	raw, err := manifest.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return m, raw
}

// startServer runs this binary as the bucket.
func startServer(b *testing.B, dir string) string {
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), benchServe+"="+filepath.Join(dir, "bucket"))
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close() // its end
		_ = server.Wait()
		os.RemoveAll(filepath.Join(dir, "bucket"))
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return line[:len(line)-1]
}

// beServer serves a bucket until its standard input ends.
func beServer(dir string) {
	s, err := bucket.New(dir)
	if err == nil {
		err = s.CreateBucket(name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.OmitMD5 = true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("http://" + l.Addr().String())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, http.Serve(l, s))
}
