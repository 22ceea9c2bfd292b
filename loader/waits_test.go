package loader_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// TestReasonOfAWait: status says which reader waits longest and for what: for a chunk that is being
// received, for one behind others, for one that failed; and why a read ended for good.
func TestReasonOfAWait(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	gate, refused := b.Fault, make(chan struct{})
	b.Fault = func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		if !strings.HasSuffix(r.Key, "model-2.safetensors") {
			return nil
		}
		gate(ctx, r)
		if r.Attempt == 1 {
			return &fetchtest.Fault{Err: errors.New("connection reset")}
		}
		select {
		case <-refused:
			return &fetchtest.Fault{Err: fmt.Errorf("the bucket says no: %w", fs.ErrPermission)}
		case <-ctx.Done():
			return nil
		}
	}
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	publish(t, n, m, at)
	if w := n.Status().Entries[0].LongestWait; w != nil {
		t.Errorf("nobody reads, and one waits: %+v", w)
	}
	read := make(chan error)
	go func() {
		_, err := mounttest.ReadFile(filepath.Join(at, "model-2.safetensors"))
		read <- err
	}()
	await := func(reason string) {
		t.Helper()
		for {
			if w := n.Status().Entries[0].LongestWait; w != nil && strings.Contains(w.Reason, reason) {
				if w.File != "model-2.safetensors" || w.Offset != 0 || w.Reads == 0 || w.Thread == 0 {
					t.Errorf("%+v", w)
				}
				return
			}
			runtime.Gosched()
		}
	}
	await("its chunk is being received")
	b.release()
	await("connection reset")
	close(refused)
	if err := <-read; !errors.Is(err, syscall.EIO) {
		t.Errorf("reading: %v", err)
	}
	if e := n.Status().Entries[0]; e.LongestWait != nil || e.State != "failed" || !strings.Contains(e.Reason, "says no") {
		t.Errorf("%+v", e)
	}
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestWithoutPassthrough has the cache on an overlay, which the kernel passes nothing through to. What
// was published early is served to its end, and status says so; who publishes when it is complete gets
// the files themselves all the same.
func TestWithoutPassthrough(t *testing.T) {
	mounttest.Need(t)
	base, dir := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(base, unix.MNT_DETACH) })
	for _, name := range []string{"lower", "upper", "work"} {
		if err := unix.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, dir, b, func(c *loader.Config) { c.Log = slog.New(slog.DiscardHandler) })
	early, late := target(t), target(t)
	publish(t, n, m, early)
	b.release()
	wait(t, n, m)
	check(t, early, m)
	if s := n.Status(); s.Passthrough != "no" || s.Served < m.Manifest.Size() {
		t.Errorf("%+v", s)
	}
	if p := publish(t, n, m, late); p.Mode != loader.Bind {
		t.Errorf("%+v", p)
	}
	check(t, late, m)
	unpublish(t, n, early)
	unpublish(t, n, late)
	nothingLeft(t, n)
}
