package loader_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

func TestPublish(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b)
	first, second := target(t), target(t)
	p := publish(t, n, m, first)
	if p.Mode != loader.Stream || p.Size != m.Manifest.Size() || p.Verified != 0 || p.Model != m.Manifest.Model.String() || p.Sum != manifest.Sum(m.Raw).String() {
		t.Errorf("%+v", p)
	}
	st, err := os.Stat(filepath.Join(first, "model-1.safetensors"))
	if err != nil || st.Size() != 3*chunk+5 {
		t.Errorf("before its bytes a file is %v, %v", st, err)
	}
	read := make(chan error, 1)
	go func() { read <- compare(first, m.Manifest, m.Content) }()
	b.release()
	if err := <-read; err != nil {
		t.Error(err)
	}
	wait(t, n, m)
	if p := publish(t, n, m, second); p.Mode != loader.Bind || p.Verified != p.Size {
		t.Errorf("%+v", p)
	}
	check(t, second, m)
	check(t, first, m)
	if err := os.WriteFile(filepath.Join(second, "config.json"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing: %v", err)
	}
	if got := len(b.Requests()); got != 8 { // one a chunk
		t.Errorf("%d requests: %+v", got, b.Requests())
	}
	s := n.Status()
	if len(s.Entries) != 1 || s.Entries[0].State != "complete" || s.Entries[0].Leases != 2 || len(s.Leases) != 2 {
		t.Errorf("%+v", s)
	}
	unpublish(t, n, first)
	if got := files(t, filepath.Join(n.dir, "mnt")); len(got) > 0 {
		t.Errorf("the modelfs stays: %q", got)
	}
	check(t, second, m)
	unpublish(t, n, second)
	unpublish(t, n, second) // again
	nothingLeft(t, n)
}

func TestPublishAgain(t *testing.T) {
	m, other := model(t, "google/gemma"), model(t, "google/other")
	b := newBucket(m, other)
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	publish(t, n, m, at)
	before := mounts(t, at)
	for range 3 {
		publish(t, n, m, at)
	}
	for _, ref := range []manifest.Reference{
		{Repo: m.Manifest.Model.Repo, Revision: fetchtest.Commit},
		{Repo: m.Manifest.Model.Repo, Pin: manifest.Sum(m.Raw)},
	} {
		if _, err := n.Publish(t.Context(), ref, at); err != nil {
			t.Error(err)
		}
	}
	if after := mounts(t, at); len(after) != 1 || after[0] != before[0] {
		t.Errorf("mounted %+v, before %+v", after, before)
	}
	if _, err := n.Publish(t.Context(), other.Ref(), at); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "unpublish it first") {
		t.Errorf("another model there: %v", err)
	}
	if s := n.Status(); len(s.Leases) != 1 || s.Leases[0].Ref != "google/gemma" {
		t.Errorf("%+v", s.Leases)
	}
	// The bucket's ref moves on; the target stays what it was.
	b.Replace(manifest.RefKey("google/gemma", "main"), []byte(strings.Repeat("0", 40)))
	publish(t, n, m, at)
	// A mount that somebody took away comes back.
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	publish(t, n, m, at)
	if after := mounts(t, at); len(after) != 1 {
		t.Errorf("mounted %+v", after)
	}
	b.release()
	check(t, at, m)
	unpublish(t, n, at)
	nothingLeft(t, n)
}

func TestPublishRefuses(t *testing.T) {
	m := model(t, "google/gemma")
	broken := fetchtest.NewModel(t, "google/broken", map[string]int{"a": 1})
	b := newBucket(m, broken)
	b.Objects[broken.Manifest.Model.Key()] = []byte("{}")
	b.release()
	n := startNode(t, t.TempDir(), b)
	dir := t.TempDir()
	foreign := filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(dir+"/file", nil, 0o644), os.MkdirAll(dir+"/full/x", 0o755), os.Symlink("full", dir+"/link"),
		os.Mkdir(foreign, 0o755), unix.Mount("tmpfs", foreign, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(foreign, unix.MNT_DETACH) })
	before := files(t, dir)
	for _, test := range []struct {
		ref, target string
		want        error
		text        string
	}{
		{"google/gemma", dir + "/file", fs.ErrExist, "is a file"},
		{"google/gemma", dir + "/full", fs.ErrExist, "files in it"},
		{"google/gemma", foreign, fs.ErrExist, "is a mount of tmpfs"},
		{"google/gemma", dir + "/link", fs.ErrInvalid, "symbolic link"},
		{"google/gemma", dir + "/link/new", fs.ErrInvalid, "symbolic link"},
		{"google/gemma", "relative", fs.ErrInvalid, "absolute"},
		{"google/gemma", dir + "/no/folder", fs.ErrNotExist, "make it first"},
		{"google/missing", dir + "/new", fs.ErrNotExist, "headstart stage google/missing"},
		{"google/gemma@v2", dir + "/new", fs.ErrNotExist, "headstart stage google/gemma@v2"},
		{"google/gemma@sha256:" + strings.Repeat("11", 32), dir + "/new", fs.ErrNotExist, "not staged"},
		{"google/broken", dir + "/new", manifest.ErrInvalid, "version"},
	} {
		ref, err := manifest.ParseReference(test.ref)
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.Publish(t.Context(), ref, test.target)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s at %s: %v", test.ref, test.target, err)
		}
	}
	if after := files(t, dir); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left: %q, before %q", after, before)
	}
	nothingLeft(t, n)
}

// TestOneLoad has many pods and waiters come at once.
func TestOneLoad(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b)
	targets := make([]string, 12)
	for i := range targets {
		targets[i] = target(t)
	}
	var group sync.WaitGroup
	for i := range 36 {
		group.Go(func() {
			if _, err := n.Publish(t.Context(), m.Ref(), targets[i%len(targets)]); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			var last loader.Progress
			if err := n.Wait(t.Context(), m.Ref(), func(p loader.Progress) { last = p }); err != nil || last.State != "complete" || last.Verified != m.Manifest.Size() {
				t.Errorf("%+v, %v", last, err)
			}
		})
	}
	b.release()
	group.Wait()
	if got := len(b.Requests()); got != 8 {
		t.Errorf("%d requests for 8 chunks", got)
	}
	for _, at := range targets {
		group.Go(func() { check(t, at, m) })
	}
	group.Wait()
	if s := n.Status(); len(s.Leases) != len(targets) || s.Entries[0].Users != len(targets) {
		t.Errorf("%+v", s)
	}
	for _, at := range targets {
		group.Go(func() { unpublish(t, n, at) })
	}
	group.Wait()
	nothingLeft(t, n)
}

// TestLastOneLeaves: a load goes on while one is left who wants it, and ends after the last one.
func TestLastOneLeaves(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b, grace(time.Millisecond))
	at := target(t)
	publish(t, n, m, at)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{}, 1000) // room for all calls of a test
	gone := make(chan error)
	go func() { gone <- n.Wait(ctx, m.Ref(), func(loader.Progress) { started <- struct{}{} }) }()
	<-started
	unpublish(t, n, at)
	select {
	case <-b.left:
		t.Error("the load was cancelled while one waits")
	default:
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-b.left // now it is cancelled
	b.release()
	wait(t, n, m) // and begins anew
	nothingLeft(t, n)
}

// TestOneComesAsTheLastLeaves: the load that nobody wanted for a moment is not cancelled under the
// one who wants it again.
func TestOneComesAsTheLastLeaves(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 60 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 1}))
	}
	b := newBucket(models...)
	n := startNode(t, t.TempDir(), b, grace(time.Nanosecond))
	var group sync.WaitGroup
	for _, m := range models {
		open := make(chan struct{})
		b.set(func(ctx context.Context) {
			select {
			case <-open:
			case <-ctx.Done():
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		started, joined := make(chan struct{}, 1000), make(chan struct{}, 1000)
		group.Go(func() { n.Wait(ctx, m.Ref(), func(loader.Progress) { started <- struct{}{} }) })
		<-started
		group.Go(func() {
			if err := n.Wait(t.Context(), m.Ref(), func(loader.Progress) { joined <- struct{}{} }); err != nil {
				t.Error(err)
			}
		})
		cancel()
		<-joined
		close(open)
		group.Wait()
	}
}

// TestFailedLoad: a load that fails says why, and the next publish tries again.
func TestFailedLoad(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	gate := b.Fault
	denied := true
	b.Fault = func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		gate(ctx, r)
		b.mu.Lock()
		defer b.mu.Unlock()
		if denied && strings.HasSuffix(r.Key, "model-2.safetensors") {
			return &fetchtest.Fault{Err: fmt.Errorf("the bucket says no: %w", fs.ErrPermission)}
		}
		return nil
	}
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	publish(t, n, m, at)
	b.release()
	if err := n.Wait(t.Context(), m.Ref(), nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("waiting: %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(at, "model-2.safetensors")); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading: %v", err)
	}
	if s := n.Status(); s.Entries[0].State != "failed" || !strings.Contains(s.Entries[0].Reason, "says no") {
		t.Errorf("%+v", s.Entries[0])
	}
	b.mu.Lock()
	denied = false
	b.mu.Unlock()
	publish(t, n, m, at)
	wait(t, n, m)
	check(t, at, m)
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestEviction has a cache with room for two models.
func TestEviction(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 4 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 8 * chunk}))
	}
	b := newBucket(models...)
	b.release()
	n := startNode(t, small(t, 18*chunk), b)
	at := target(t)
	for _, i := range []int{0, 1, 0} { // 0 is the one that was leased last
		publish(t, n, models[i], at)
		wait(t, n, models[i])
		unpublish(t, n, at)
	}
	publish(t, n, models[2], at)
	check(t, at, models[2])
	if got := present(n); got != "google/m0 google/m2" {
		t.Errorf("after the first eviction: %s", got)
	}
	second := target(t)
	publish(t, n, models[0], second)
	_, err := n.Publish(t.Context(), models[3].Ref(), target(t))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), fmt.Sprint(8*chunk)) || !strings.Contains(err.Error(), fmt.Sprintf("%d bytes are leased", 16*chunk)) {
		t.Errorf("with everything leased: %v", err)
	}
	check(t, at, models[2])
	check(t, second, models[0])
	unpublish(t, n, at)
	wait(t, n, models[3])
	if got := present(n); got != "google/m0 google/m3" {
		t.Errorf("after the second eviction: %s", got)
	}
	check(t, second, models[0])
	unpublish(t, n, second)
	nothingLeft(t, n)
}

// small returns a folder on a file system of that size.
func small(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func present(n *node) string {
	var repos []string
	for _, e := range n.cache.Entries() {
		repos = append(repos, e.Manifest().Model.Repo)
	}
	return strings.Join(repos, " ")
}

// TestUnpublishWhileReading: readers that are there go on.
func TestUnpublishWhileReading(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	b.release()
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	for range 2 { // first from the modelfs, then from the entry
		publish(t, n, m, at)
		f, err := os.Open(filepath.Join(at, "model-1.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		wait(t, n, m)
		unpublish(t, n, at)
		got := make([]byte, 3*chunk+5)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.Content("model-1.safetensors")) {
			t.Errorf("after unpublishing: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t, n)
}

// settle returns when the last modelfs has gone.
func settle(n *node) {
	for n.Serving() > 0 {
		runtime.Gosched()
	}
}

// TestAtOnce publishes, unpublishes, waits and asks at once, on few targets and with little room.
func TestAtOnce(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 3 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 2*chunk + 1, "b": chunk}))
	}
	b := newBucket(models...)
	b.release()
	n := startNode(t, small(t, 9*chunk), b, grace(time.Microsecond))
	targets := []string{target(t), target(t), target(t)}
	var group sync.WaitGroup
	for worker := range 6 {
		group.Go(func() {
			for i := range 25 {
				m, at := models[(worker+i)%len(models)], targets[(worker*7+i*5)%len(targets)]
				_, err := n.Publish(t.Context(), m.Ref(), at)
				if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOSPC) {
					t.Error(err)
				}
				if err == nil && worker%2 == 0 {
					// Another worker may take it away meanwhile, or show another model.
					if got, err := mounttest.ReadFile(filepath.Join(at, "a")); err == nil && len(got) != 2*chunk+1 {
						t.Errorf("%d bytes", len(got))
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%3)*time.Millisecond)
				n.Wait(ctx, models[i%len(models)].Ref(), nil)
				cancel()
				n.Status()
				if err := n.Unpublish(t.Context(), at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for _, at := range targets {
		if err := n.Unpublish(t.Context(), at); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t, n)
}

func TestMetrics(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	publish(t, n, m, at)
	b.release() // not before: a model that is complete is shown without opens
	check(t, at, m)
	wait(t, n, m)
	registry := prometheus.NewPedanticRegistry()
	for _, c := range append(n.Collectors(), n.engine.Collectors()...) {
		if err := registry.Register(c); err != nil {
			t.Error(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("against Prometheus' conventions: %+v, %v", problems, err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			values[f.GetName()] += one.GetCounter().GetValue() + one.GetGauge().GetValue() + float64(one.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"headstart_leases":                   1,
		"headstart_cache_bytes":              float64(m.Manifest.Size()),
		"headstart_publish_duration_seconds": 1,
		"headstart_opens_total":              6, // publish polls one
		"headstart_failed_reads_total":       0,
		"headstart_fetched_bytes_total":      float64(m.Manifest.Size()),
		"headstart_chunks_total":             8,
		"headstart_queue_wait_seconds":       8,
		"headstart_load_duration_seconds":    1,
		"headstart_loads_running":            0,
		"headstart_loads_total":              1,
		"headstart_waiting_readers":          0,
		"headstart_in_flight_bytes":          0,
		"headstart_evicted_bytes_total":      0,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s is %v (%v), want %v", name, got, ok, want)
		}
	}
}
