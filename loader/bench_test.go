package loader_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// loaded is a node with one complete model on a tmpfs of huge pages, and its socket.
func loaded(b *testing.B, size int) (n *node, m *fetchtest.Model, socket, early string) {
	b.Helper()
	dir := b.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("huge=always,size=%d", size+size/4+(64<<20))); err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	m = fetchtest.NewModel(b, "google/gemma", map[string]int{"config.json": 700, "model-1.safetensors": size})
	src := newBucket(m)
	n = startNode(b, dir, src, func(c *loader.Config) { c.Log = slog.New(slog.DiscardHandler) })
	early = target(b)
	publish(b, n, m, early)
	src.release()
	wait(b, n, m)
	socket = filepath.Join(b.TempDir(), "s")
	l, err := control.Listen(socket)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { control.New(n, slog.New(slog.DiscardHandler)).Run(ctx, l) })
	b.Cleanup(func() { cancel(); group.Wait() })
	return n, m, socket, early
}

// BenchmarkSecondPublish is what the next pod waits for: a publish of a model that is there, in this
// process, through the socket, and by the command of the binary that HEADSTART names.
func BenchmarkSecondPublish(b *testing.B) {
	n, m, socket, _ := loaded(b, 1<<20)
	client := control.Dial(socket)
	defer client.Close()
	arms := map[string]func(at string, layout loader.Layout) error{
		"call": func(at string, layout loader.Layout) error {
			_, err := n.PublishAs(b.Context(), m.Ref(), at, layout)
			return err
		},
		"socket": func(at string, layout loader.Layout) error {
			_, err := client.PublishAs(b.Context(), m.Ref(), at, layout)
			return err
		},
	}
	if binary := os.Getenv("HEADSTART"); binary != "" {
		arms["command"] = func(at string, layout loader.Layout) error {
			return exec.Command(binary, "publish", m.Ref().String(), at, "--socket", socket, "--layout", string(layout)).Run()
		}
	}
	for name, publish := range arms {
		for _, layout := range []loader.Layout{loader.Plain, loader.HF} {
			b.Run(name+"/"+string(layout), func(b *testing.B) {
				at := target(b)
				var took []time.Duration
				for b.Loop() {
					begin := time.Now()
					if err := publish(at, layout); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(begin))
					b.StopTimer()
					if err := n.Unpublish(b.Context(), at); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				slices.Sort(took)
				b.ReportMetric(took[len(took)/2].Seconds()*1e3, "ms-median")
				b.ReportMetric(took[len(took)-1].Seconds()*1e3, "ms-max")
			})
		}
	}
}

// BenchmarkMapped reads the whole model through a mapping, in turns: the cache's file itself, the second
// pod's bind mount, and the first pod's mount, which streamed and now passes through. It reports the
// others' median rates over the file's.
func BenchmarkMapped(b *testing.B) {
	const size = 512 << 20
	n, m, _, early := loaded(b, size)
	late := target(b)
	publish(b, n, m, late)
	name := "model-1.safetensors"
	own := filepath.Join(n.dir, "entries", n.Status().Entries[0].Entry, "data")
	places := []string{own, late, early}
	var took [3][]time.Duration
	b.SetBytes(3 * size)
	for turn := 0; b.Loop(); turn++ {
		for i := range places { // each is the first one in turn
			i = (i + turn) % len(places)
			took[i] = append(took[i], walk(b, filepath.Join(places[i], name)))
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	native := took[0][len(took[0])/2].Seconds()
	b.ReportMetric(native/took[1][len(took[1])/2].Seconds(), "bind/native")
	b.ReportMetric(native/took[2][len(took[2])/2].Seconds(), "passthrough/native")
}

var sink uint64

// walk maps a file and adds it up.
func walk(b *testing.B, path string) time.Duration {
	begin := time.Now()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(data)
	for _, word := range unsafe.Slice((*uint64)(unsafe.Pointer(&data[0])), len(data)/8) {
		sink += word
	}
	return time.Since(begin)
}
