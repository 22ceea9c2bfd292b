package loader_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/loader"
)

// TestDrain: a reader whose load ends soon after the node was told to stop gets its bytes.
func TestDrain(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b, func(c *loader.Config) { c.Drain = time.Minute })
	at := target(t)
	publish(t, n, m, at)
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(at, "config.json"))
		read <- err
	}()
	for n.Status().Entries[0].Waiting == 0 {
		runtime.Gosched()
	}
	n.end()
	b.release()
	if err := <-read; err != nil {
		t.Error(err)
	}
}
