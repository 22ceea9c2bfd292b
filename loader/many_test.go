package loader_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

// Many pods and many models on one node: a test for each thing that can happen between them.

// runEach reads a file in pieces, all at once and each by a read of its own, and prints its SHA-256.
func runEach(size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Open(os.Args[1])
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	}
	if err != nil {
		return err
	}
	all := make([]byte, st.Size())
	var group errgroup.Group
	for off := int64(0); off < st.Size(); off += n {
		group.Go(func() error {
			_, err := f.ReadAt(all[off:min(off+n, st.Size())], off)
			return err
		})
	}
	err = group.Wait()
	fmt.Printf("%x", sha256.Sum256(all))
	return err
}

// TestThousandWaiters: a thousand reads of one mount, each of a chunk that is missing, and a thousand who
// wait for the whole model share one load. They cost no threads, and everybody gets everything.
func TestThousandWaiters(t *testing.T) {
	const many = 1000
	m := fetchtest.NewModel(t, "google/gemma", map[string]int{"a": many * chunk})
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b)
	at := target(t)
	publish(t, n, m, at)
	threads := len(files(t, "/proc/self/task"))
	cmd := exec.Command("/proc/self/exe", filepath.Join(at, "a"))
	cmd.Env = append(os.Environ(), fmt.Sprintf("LOADER_TEST_EACH=%d", chunk))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	var sum bytes.Buffer
	cmd.Stdout = &sum
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range many {
		group.Go(func() {
			if err := n.Wait(t.Context(), m.Ref(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	var e loader.EntryStatus
	for e = n.Status().Entries[0]; e.LongestWait == nil || e.LongestWait.Reads < many || e.Users < many; e = n.Status().Entries[0] {
		runtime.Gosched()
	}
	if w := e.LongestWait; w.File != "a" || w.Offset%chunk != 0 || w.Thread == 0 || w.Reason == "" || e.Waiting != many {
		t.Errorf("%+v, %+v", w, e)
	}
	if now := len(files(t, "/proc/self/task")); now > threads+50 {
		t.Errorf("%d threads, %d before", now, threads)
	}
	if now := runtime.NumGoroutine(); now > 2*many+200 {
		t.Errorf("%d goroutines", now)
	}
	b.release()
	group.Wait()
	if err := cmd.Wait(); err != nil || sum.String() != m.Manifest.Files[0].SHA256.String() {
		t.Errorf("%q, %v", sum.String(), err)
	}
	// A second request for what is late is rare: see the engine's budget.
	if got := len(b.Requests()); got < many || got > many+2+many*5/100 {
		t.Errorf("%d requests for %d chunks", got, many)
	}
	if e := n.Status().Entries[0]; e.LongestWait != nil {
		t.Errorf("afterwards one waits: %+v", e.LongestWait)
	}
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestFiftyModels come and go on a node that has room for eight, four at a time, while one of them is
// leased all the time.
func TestFiftyModels(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 50 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 3 * chunk, "b": chunk - 1}))
	}
	b := newBucket(models...)
	b.release()
	n := startNode(t, small(t, 34*chunk), b)
	stays := target(t)
	wait(t, n, models[0])
	publish(t, n, models[0], stays)
	work := make(chan *fetchtest.Model)
	var group sync.WaitGroup
	for range 4 {
		at := target(t)
		group.Go(func() {
			for m := range work {
				if _, err := n.Publish(t.Context(), m.Ref(), at); err != nil {
					t.Error(err)
					continue
				}
				check(t, at, m)
				if err := n.Unpublish(t.Context(), at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		for _, m := range models[1:] {
			work <- m
		}
	}
	close(work)
	group.Wait()
	check(t, stays, models[0])
	settle(n)
	got := n.Status()
	if len(got.Entries) > 8 || !slices.ContainsFunc(got.Entries, func(e loader.EntryStatus) bool { return e.Leases == 1 && e.State == "complete" }) {
		t.Errorf("%+v", got)
	}
	unpublish(t, n, stays)
	nothingLeft(t, n)
}

// TestLeasesSurviveARestart, and keep their entries from being evicted afterwards.
func TestLeasesSurviveARestart(t *testing.T) {
	m, other := model(t, "google/gemma"), model(t, "google/other")
	b := newBucket(m, other)
	b.release()
	dir := small(t, 12*chunk)
	n := startNode(t, dir, b)
	targets := []string{target(t), target(t), target(t)}
	wait(t, n, m)
	for _, at := range targets {
		publish(t, n, m, at)
	}
	before := n.Status().Leases
	n.stop()
	n = startNode(t, dir, b)
	if err := n.Wait(t.Context(), other.Ref(), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the leased model made room: %v", err)
	}
	if after := n.Status().Leases; len(after) != 3 || !slices.Equal(before, after) {
		t.Errorf("leases: %+v, before %+v", after, before)
	}
	for _, at := range targets {
		check(t, at, m)
		unpublish(t, n, at)
	}
	wait(t, n, other)
	nothingLeft(t, n)
}

// TestUnpublishWhileLoading: one of two pods leaves and the load goes on for the other one; when that
// leaves too the load ends, and what had arrived is not fetched again.
func TestUnpublishWhileLoading(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	b.hold = func(key string) bool {
		return !strings.HasSuffix(key, "config.json") && !strings.HasSuffix(key, "model-1.safetensors")
	}
	n := startNode(t, t.TempDir(), b, grace(time.Millisecond))
	first, second := target(t), target(t)
	publish(t, n, m, first)
	publish(t, n, m, second)
	unpublish(t, n, first)
	for _, name := range []string{"config.json", "model-1.safetensors"} {
		fetched(t, second, name, m.Content(name)).Close()
	}
	unpublish(t, n, second)
	<-b.left // a request that was cancelled
	for n.Status().Entries[0].State != "failed" {
		runtime.Gosched()
	}
	if e := n.Status().Entries[0]; !strings.Contains(e.Reason, "cancelled") || e.Verified != 3*chunk+5+7 {
		t.Errorf("%+v", e)
	}
	b.release()
	publish(t, n, m, second)
	check(t, second, m)
	for _, r := range b.Requests() {
		if r.Attempt > 1 && !b.hold(r.Key) {
			t.Errorf("fetched again: %+v", r)
		}
	}
	unpublish(t, n, second)
	nothingLeft(t, n)
}

// TestTwoCommits of one model are two models.
func TestTwoCommits(t *testing.T) {
	old := model(t, "google/gemma")
	other := atCommit(t, model(t, "google/newer"), "google/gemma", strings.Repeat("1f", 20))
	b := newBucket(old, other)
	b.Objects[manifest.RefKey("google/gemma", "v2")] = []byte(other.Manifest.Model.Commit)
	n := startNode(t, t.TempDir(), b)
	first, second, third := target(t), target(t), target(t)
	publish(t, n, old, first)
	if p, err := n.Publish(t.Context(), manifest.Reference{Repo: "google/gemma", Revision: "v2"}, second); err != nil || p.Model != other.Manifest.Model.String() {
		t.Errorf("%+v, %v", p, err)
	}
	mounttest.Polled(t, filepath.Join(second, "config.json"))
	b.release()
	check(t, first, old)
	check(t, second, other)
	if _, err := n.Publish(t.Context(), manifest.Reference{Repo: "google/gemma", Revision: fetchtest.Commit}, third); err != nil {
		t.Fatal(err)
	}
	check(t, third, old)
	if s := n.Status(); len(s.Entries) != 2 || s.Leases[0].Model == s.Leases[1].Model && s.Leases[1].Model == s.Leases[2].Model {
		t.Errorf("%+v", s)
	}
	for _, at := range []string{first, second, third} {
		unpublish(t, n, at)
	}
	nothingLeft(t, n)
}

// atCommit makes m the content of another repository's commit.
func atCommit(t *testing.T, m *fetchtest.Model, repo, commit string) *fetchtest.Model {
	t.Helper()
	to := *m.Manifest
	to.Model = manifest.Model{Repo: repo, Commit: commit}
	raw, err := manifest.Marshal(&to)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string][]byte{to.Model.Key(): raw}
	for _, f := range to.Files {
		objects[to.Model.Object(f.Path)] = m.Content(f.Path)
	}
	return &fetchtest.Model{Manifest: &to, Raw: raw, Objects: maps.Clone(objects)}
}

// TestGrace: the load that the last one has left goes on for the time of grace, also to its end, and who
// comes back joins it.
func TestGrace(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b, grace(time.Hour))
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		joined := make(chan struct{}, 1000)
		gone := make(chan error)
		go func() { gone <- n.Wait(ctx, m.Ref(), func(loader.Progress) { joined <- struct{}{} }) }()
		<-joined
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	b.release()
	for n.Status().Entries[0].State != "complete" {
		runtime.Gosched()
	}
	if got := len(b.Requests()); got != 8 || len(b.left) != 0 {
		t.Errorf("%d requests for 8 chunks, %d were cancelled", got, len(b.left))
	}
}

// TestFirstCallerLeaves: who began a load ends it for nobody else, and the context of a publish ends with
// the publish.
func TestFirstCallerLeaves(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b, grace(time.Nanosecond))
	ctx, cancel := context.WithCancel(t.Context())
	began, gone := make(chan struct{}, 1000), make(chan error)
	go func() { gone <- n.Wait(ctx, m.Ref(), func(loader.Progress) { began <- struct{}{} }) }()
	<-began
	at := target(t)
	short, end := context.WithCancel(t.Context())
	if _, err := n.Publish(short, m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	end()
	joined, done := make(chan struct{}, 1000), make(chan error)
	go func() { done <- n.Wait(t.Context(), m.Ref(), func(loader.Progress) { joined <- struct{}{} }) }()
	<-joined
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	b.release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	check(t, at, m)
	if got := len(b.Requests()); got != 8 || len(b.left) != 0 {
		t.Errorf("%d requests for 8 chunks, %d were cancelled", got, len(b.left))
	}
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// footprint is what a node may leave behind.
type footprint struct {
	Descriptors, Inotify, Mounts, Goroutines int
	Heap                                     uint64
}

func measure(t *testing.T, n *node) (f footprint) {
	t.Helper()
	settle(n)
	for _, fd := range files(t, "/proc/self/fd") {
		f.Descriptors++
		if to, err := os.Readlink("/proc/self/fd/" + fd); err == nil && strings.Contains(to, "inotify") {
			f.Inotify++
		}
	}
	var mem runtime.MemStats
	runtime.GC()
	runtime.GC() // what a finalizer or a pool held at the first
	runtime.ReadMemStats(&mem)
	// The folders of a test lie beside each other; elsewhere other tests mount.
	f.Mounts, f.Goroutines, f.Heap = len(mounts(t, filepath.Dir(t.TempDir()))), runtime.NumGoroutine(), mem.HeapAlloc
	return f
}

// TestFlat: nothing grows with the number of publishes, of either layout, while loading and when
// complete. HEADSTART_TEST_PUBLISHES says how many of each; 100 by default.
func TestFlat(t *testing.T) {
	count := 100
	if s := os.Getenv("HEADSTART_TEST_PUBLISHES"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	m := model(t, "google/gemma")
	b := newBucket(m)
	b.hold = func(key string) bool { return !strings.HasSuffix(key, "config.json") }
	n := startNode(t, t.TempDir(), b, func(c *loader.Config) { c.Log = slog.New(slog.DiscardHandler) })
	plain, hf := target(t), target(t)
	devices := map[uint64]bool{} // of the mounts, by whose numbers the kernel has a bdi and a connection
	once := func() {
		publish(t, n, m, plain)
		publishHF(t, n, m.Ref(), hf)
		var st unix.Stat_t
		if err := unix.Stat(plain, &st); err != nil {
			t.Error(err)
		}
		devices[st.Dev] = true
		if got, err := mounttest.ReadFile(filepath.Join(plain, "config.json")); err != nil || !bytes.Equal(got, m.Content("config.json")) {
			t.Errorf("reading: %v", err)
		}
		unpublish(t, n, hf)
		unpublish(t, n, plain)
	}
	for _, state := range []string{"streaming", "complete"} {
		for range 10 {
			once()
		}
		before := measure(t, n)
		for range count {
			once()
		}
		after := measure(t, n)
		t.Logf("%s: after %d publishes %+v, before %+v", state, 2*count, after, before)
		grown := after.Goroutines > before.Goroutines+5 || after.Heap > before.Heap+(1<<20) // readers of the connection come and go
		after.Goroutines, after.Heap = before.Goroutines, before.Heap
		if grown || after != before {
			t.Errorf("%s: it has grown", state)
		}
		if state == "streaming" {
			b.release()
			wait(t, n, m)
		}
	}
	left := 0
	for d := range devices { // a number that is free is used again, by others too
		if _, err := os.Stat(fmt.Sprintf("/sys/class/bdi/%d:%d", unix.Major(d), unix.Minor(d))); err == nil {
			left++
		}
	}
	t.Logf("%d numbers of devices were used, %d are in use now", len(devices), left)
	if left > count/4 {
		t.Errorf("%d bdi entries of %d mounts are left", left, len(devices))
	}
	nothingLeft(t, n)
}
