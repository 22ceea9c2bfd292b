package loader

import (
	"bytes"
	"log/slog"
	"runtime"
	"testing"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// TestLastChunkAsAReaderLooks: a reader finds that its chunk is missing, and before it finds the load
// the chunk comes and is the last one.
func TestLastChunkAsAReaderLooks(t *testing.T) {
	fm := fetchtest.NewModel(t, "google/gemma", map[string]int{"a": 1})
	c, err := cache.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e, err := c.Entry(fm.Manifest, fm.Raw)
	if err != nil {
		t.Fatal(err)
	}
	m := &model{loader: &Loader{}, entry: e}
	m.loader.mu.Lock()
	read := make(chan error, 1)
	go func() { read <- (&view{m, e}).Wait(t.Context(), 0, 0, 1) }()
	for stacks := make([]byte, 1<<20); !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("loader.(*model).current")); {
		runtime.Gosched()
	}
	p, err := e.Chunk(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	copy(p, fm.Content("a"))
	if err := e.Commit(0, 0); err != nil {
		t.Fatal(err)
	}
	if err := e.Seal(); err != nil {
		t.Fatal(err)
	}
	m.loader.mu.Unlock()
	if err := <-read; err != nil {
		t.Error(err)
	}
}
