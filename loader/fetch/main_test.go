package fetch_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

const chunk = fetchtest.ChunkSize

// sizes is a model whose files are on both sides of every edge.
func sizes() map[string]int {
	return map[string]int{
		"config.json":                      1,
		"empty":                            0,
		"a/n-1":                            chunk - 1,
		"a/n":                              chunk,
		"a/n+1":                            chunk + 1,
		"a/2n":                             2 * chunk,
		"model-00001-of-00002.safetensors": 5*chunk + 1,
		"model-00002-of-00002.safetensors": 6 * chunk,
	}
}

func openCache(t testing.TB, dir string) *cache.Cache {
	t.Helper()
	c, err := cache.Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newEntry(t testing.TB, m *fetchtest.Model) *cache.Entry {
	t.Helper()
	e, err := openCache(t, t.TempDir()).Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// run starts an engine and stops it at the end of the test.
func run(t testing.TB, cfg fetch.Config) *fetch.Engine {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	e := fetch.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return e
}

// checkFiles compares an entry's files with the model's.
func checkFiles(t testing.TB, e *cache.Entry, m *fetchtest.Model) {
	t.Helper()
	for i := range m.Manifest.Files {
		path := m.Manifest.Files[i].Path
		got, err := os.ReadFile(e.Path(i))
		if err != nil || !bytes.Equal(got, m.Content(path)) {
			t.Errorf("%s: %d bytes that are not the model's, %v", path, len(got), err)
		}
	}
	if err := fetch.Verify(t.Context(), e.Dir(), m.Manifest, nil); err != nil {
		t.Error(err)
	}
}

// wait waits for a load's success.
func wait(t testing.TB, l *fetch.Load) {
	t.Helper()
	<-l.Done()
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
}
