package loader_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

func TestMain(m *testing.M) {
	for name, run := range map[string]func(string) error{"LOADER_TEST_READER": runReader, "LOADER_TEST_NODE": runNode, "LOADER_TEST_KEEPER": runKeeper, "LOADER_TEST_EACH": runEach} {
		if value := os.Getenv(name); value != "" {
			if err := run(value); err != nil {
				slog.Error(err.Error())
				os.Exit(1)
			}
			return
		}
	}
	mounttest.Main(m)
}

const chunk = fetchtest.ChunkSize

// bucket is a source of several models whose chunks come when a test says so.
type bucket struct {
	fetchtest.Memory
	open chan struct{}             // closed: chunks come
	left chan struct{}             // gets a token for each request that was cancelled before that
	hold func(key string) bool     // nil: all chunks are held
	mu   sync.Mutex                // guards gate
	gate func(ctx context.Context) // what a chunk waits for
}

func newBucket(models ...*fetchtest.Model) *bucket {
	b := &bucket{open: make(chan struct{}), left: make(chan struct{}, 1000)}
	b.Objects = map[string][]byte{}
	for _, m := range models {
		maps.Copy(b.Objects, m.Objects)
	}
	b.set(func(ctx context.Context) {
		select {
		case <-b.open:
		case <-ctx.Done():
			b.left <- struct{}{}
		}
	})
	b.Fault = func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		if b.hold == nil || b.hold(r.Key) {
			b.mu.Lock()
			gate := b.gate
			b.mu.Unlock()
			gate(ctx)
		}
		return nil
	}
	return b
}

func (b *bucket) set(gate func(ctx context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate = gate
}

func (b *bucket) release() { close(b.open) }

// node is a loader at work.
type node struct {
	*loader.Loader
	cache  *cache.Cache
	engine *fetch.Engine
	dir    string
	end    func() // begins to stop
	stop   func()
}

type option func(*loader.Config)

func startNode(t testing.TB, dir string, src fetch.Source, options ...option) *node {
	t.Helper()
	return startNodeOn(t, dir, cache.Media{}, src, options...)
}

func startNodeOn(t testing.TB, dir string, media cache.Media, src fetch.Source, options ...option) *node {
	t.Helper()
	mounttest.Need(t)
	log := slog.New(slog.NewTextHandler(testLog{t}, nil))
	c, err := cache.OpenMedia(dir, media, log)
	if err != nil {
		t.Fatal(err)
	}
	engine := fetch.New(fetch.Config{Source: src, Log: log})
	cfg := loader.Config{Cache: c, Engine: engine, Source: src, Log: log}
	for _, o := range options {
		o(&cfg)
	}
	n := &node{Loader: loader.New(cfg), cache: c, engine: engine, dir: dir}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	loaded, end := context.WithCancel(context.Background())
	group.Go(func() {
		if err := engine.Run(loaded); err != nil {
			t.Error(err)
		}
	})
	group.Go(func() {
		defer end()
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	n.end = cancel
	n.stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// target returns a path below a folder of the test, and unmounts it at the end.
func target(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "model")
	t.Cleanup(func() {
		for unix.Unmount(path, unix.MNT_DETACH) == nil {
		}
	})
	return path
}

// model makes a small model.
func model(t testing.TB, repo string) *fetchtest.Model {
	return fetchtest.NewModel(t, repo, map[string]int{"config.json": 7, "empty": 0, "model-1.safetensors": 3*chunk + 5, "model-2.safetensors": 2 * chunk, "sub/a": chunk})
}

// check compares what is at a path with the model.
func check(t testing.TB, path string, m *fetchtest.Model) {
	t.Helper()
	if err := compare(path, m.Manifest, m.Content); err != nil {
		t.Error(err)
	}
}

func compare(path string, m *manifest.Manifest, content func(string) []byte) error {
	var errs []error
	for i := range m.Files {
		name := m.Files[i].Path
		got, err := mounttest.ReadFile(filepath.Join(path, name))
		if err != nil {
			errs = append(errs, err)
		} else if !bytes.Equal(got, content(name)) {
			errs = append(errs, errors.New(name+" has other bytes"))
		}
	}
	return errors.Join(errs...)
}

func publish(t testing.TB, n *node, m *fetchtest.Model, target string) loader.Published {
	t.Helper()
	p, err := n.Publish(t.Context(), m.Ref(), target)
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode == loader.Stream {
		mounttest.Polled(t, filepath.Join(target, m.Manifest.Files[0].Path))
	}
	return p
}

func unpublish(t testing.TB, n *node, target string) {
	t.Helper()
	if err := n.Unpublish(t.Context(), target); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after unpublishing: %v", err)
	}
}

func wait(t testing.TB, n *node, m *fetchtest.Model) {
	t.Helper()
	if err := n.Wait(t.Context(), m.Ref(), nil); err != nil {
		t.Fatal(err)
	}
}

// mounts returns what is mounted at or below one of the paths.
func mounts(t testing.TB, below ...string) []mount.Point {
	t.Helper()
	table, err := mount.Table()
	if err != nil {
		t.Fatal(err)
	}
	var found []mount.Point
	for _, p := range table {
		for _, b := range below {
			if p.Target == b || strings.HasPrefix(p.Target, b+"/") {
				found = append(found, p)
			}
		}
	}
	return found
}

// files returns the names in a folder, none where there is no folder.
func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// nothingLeft checks that nothing is leased or shown.
func nothingLeft(t testing.TB, n *node) {
	t.Helper()
	if m := mounts(t, filepath.Join(n.dir, "mnt")); len(m) > 0 {
		t.Errorf("mounted: %+v", m)
	}
	if l := append(files(t, filepath.Join(n.dir, "leases")), files(t, filepath.Join(n.dir, "mnt"))...); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
	if l := n.Status().Leases; len(l) > 0 {
		t.Errorf("leased: %+v", l)
	}
}

func grace(d time.Duration) option { return func(c *loader.Config) { c.Grace = d } }
