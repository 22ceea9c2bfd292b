package loader_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// statusOf returns what the node says of a model.
func statusOf(s loader.Status, m *fetchtest.Model) loader.EntryStatus {
	for _, e := range s.Entries {
		if strings.HasPrefix(e.Model, m.Manifest.Model.Repo+"@") {
			return e
		}
	}
	return loader.EntryStatus{}
}

// awaitCopy waits until the copy of a model is in a state, and returns what is said of it.
func awaitCopy(t *testing.T, n *node, m *fetchtest.Model, state string) loader.CopyStatus {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c := statusOf(n.Status(), m).Copy
		if c != nil && c.State == state {
			return *c
		}
		if time.Now().After(deadline) {
			t.Fatalf("the copy of %s: %+v, want %s", m.Manifest.Model, c, state)
		}
	}
}

// values returns the node's metrics, each with its labels' values behind its name.
func values(t *testing.T, n *node) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(n.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "headstart_")
			for _, l := range one.GetLabel() {
				name += " " + l.GetValue()
			}
			all[name] = one.GetCounter().GetValue() + one.GetGauge().GetValue()
		}
	}
	return all
}

func expect(t *testing.T, n *node, want map[string]float64) {
	t.Helper()
	got := values(t, n)
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s is %v (%v), want %v", name, g, ok, v)
		}
	}
}

// copyAgain lets copies that have failed begin anew at once.
func copyAgain(c *loader.Config) { c.CopyAgain = time.Nanosecond }

// eights makes models of 8 chunks each.
func eights(t *testing.T, n int) (models []*fetchtest.Model) {
	for i := range n {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 7*chunk + 1, "b/c": chunk - 1}))
	}
	return models
}

// TestBoth has memory for one model: what goes from there is served from the disk at once, without the
// bucket, also by a node whose memory is empty.
func TestBoth(t *testing.T) {
	models := eights(t, 2)
	b := newBucket(models...)
	b.release()
	dir, _ := mounttest.Ext4(t, 64, "")
	media := withMemory(t, dir, cache.Both, 12*chunk)
	n := startNodeOn(t, dir, media, b)
	at := target(t)
	publish(t, n, models[0], at)
	wait(t, n, models[0])
	if c := awaitCopy(t, n, models[0], "complete"); c.Verified != 8*chunk {
		t.Errorf("%+v", c)
	}
	if s := n.Status(); s.Cached["leased"] != 8*chunk || s.Cached["copy"] != 8*chunk || s.Entries[0].Medium != cache.Memory || len(s.Entries) != 1 {
		t.Errorf("%+v", s)
	}
	expect(t, n, map[string]float64{"copies_total complete": 1, "copies_total failed": 0, "copied_bytes_total": 8 * chunk,
		"cache_bytes memory leased": 8 * chunk, "cache_bytes disk copy": 8 * chunk, "cache_bytes disk leased": 0, "evictions_total memory": 0, "evictions_total disk": 0,
		"medium_size_bytes memory": 12 * chunk})
	publish(t, n, models[0], at) // nothing to copy
	unpublish(t, n, at)
	wait(t, n, models[1])
	awaitCopy(t, n, models[1], "complete")
	first := statusOf(n.Status(), models[0])
	if first.Medium != cache.Disk || first.State != "complete" || first.Copy != nil || !strings.Contains(first.Why, "needed for another model") {
		t.Errorf("%+v", first)
	}
	expect(t, n, map[string]float64{"copies_total complete": 2, "evictions_total memory": 1, "evicted_bytes_total memory": 8 * chunk, "evictions_total disk": 0})
	before := len(b.Requests())
	if p := publish(t, n, models[0], at); p.Mode != loader.Bind {
		t.Errorf("%+v", p)
	}
	check(t, at, models[0])
	unpublish(t, n, at)
	n.stop()

	// A reboot.
	if err := unix.Unmount(filepath.Join(dir, "memory"), 0); err != nil {
		t.Fatal(err)
	}
	n = startNodeOn(t, dir, media, b)
	for _, m := range models {
		if p := publish(t, n, m, at); p.Mode != loader.Bind {
			t.Errorf("%+v", p)
		}
		check(t, at, m)
		unpublish(t, n, at)
	}
	if after := len(b.Requests()); after != before {
		t.Errorf("%d requests", after-before)
	}
	if got := files(t, filepath.Join(dir, "entries")); len(got) != 2 {
		t.Errorf("on the disk: %q", got)
	}
	nothingLeft(t, n)
}

// TestBothAcrossARestart: a model of a node that made no copies gets one, and only once.
func TestBothAcrossARestart(t *testing.T) {
	m := eights(t, 1)[0]
	b := newBucket(m)
	b.release()
	dir := t.TempDir()
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Memory, 12*chunk), b)
	at := target(t)
	publish(t, n, m, at)
	wait(t, n, m)
	if c := statusOf(n.Status(), m).Copy; c != nil {
		t.Errorf("%+v", c)
	}
	n.stop()
	for _, copied := range []float64{1, 0} {
		n = startNodeOn(t, dir, withMemory(t, dir, cache.Both, 12*chunk), b)
		awaitCopy(t, n, m, "complete")
		expect(t, n, map[string]float64{"copies_total complete": copied, "copied_bytes_total": copied * 8 * chunk})
		check(t, at, m)
		n.stop()
	}
	n = startNodeOn(t, dir, withMemory(t, dir, cache.Both, 12*chunk), b)
	wait(t, n, m)
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// fillUp takes all of a file system but some bytes.
func fillUp(t *testing.T, dir string, but int64) {
	t.Helper()
	var st unix.Statfs_t
	f, err := os.Create(filepath.Join(dir, "full"))
	if err == nil {
		err = errors.Join(unix.Statfs(dir, &st), unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-but), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBothDiskFull: the model in memory is served all the same, what is wrong is said, and who asks
// when there is room gets the copy.
func TestBothDiskFull(t *testing.T) {
	m := eights(t, 1)[0]
	b := newBucket(m)
	b.release()
	dir, _ := mounttest.Ext4(t, 64, "")
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 12*chunk), b)
	fillUp(t, dir, 4*chunk)
	at := target(t)
	publish(t, n, m, at)
	wait(t, n, m)
	publish(t, n, m, at) // too soon
	if c := awaitCopy(t, n, m, "failed"); c.Verified != 0 || !strings.Contains(c.Reason, "bytes, but "+dir+" has") || !strings.Contains(c.Reason, "use a larger disk") {
		t.Errorf("%+v", c)
	}
	check(t, at, m)
	expect(t, n, map[string]float64{"copies_total failed": 1, "copies_total complete": 0, "cache_bytes disk copy": 0, "copied_bytes_total": 0})
	if got := files(t, filepath.Join(dir, "entries")); len(got) != 0 {
		t.Errorf("left on the disk: %q", got)
	}
	if err := os.Remove(filepath.Join(dir, "full")); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n = startNodeOn(t, dir, withMemory(t, dir, cache.Both, 12*chunk), b)
	wait(t, n, m)
	awaitCopy(t, n, m, "complete")
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestBothDiskFails: a disk that takes no writes any more costs the copies, the one that is being made
// too, and not the models.
func TestBothDiskFails(t *testing.T) {
	models := eights(t, 2)
	b := newBucket(models...)
	b.hold = func(key string) bool { return strings.HasPrefix(key, "google/m1/") && strings.HasSuffix(key, "/b/c") }
	dir, device := mounttest.Ext4(t, 8, "errors=remount-ro")
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 20*chunk), b)
	at := []string{target(t), target(t)}
	publish(t, n, models[1], at[1])
	publish(t, n, models[0], at[0])
	awaitCopy(t, n, models[0], "copying")
	if err := os.WriteFile("/sys/fs/ext4/"+device+"/trigger_fs_error", []byte("test"), 0); err != nil {
		t.Skip("the kernel does not let a test break its disk: ", err)
	}
	b.release()
	for i, m := range models {
		wait(t, n, m)
		if c := awaitCopy(t, n, m, "failed"); !strings.Contains(c.Reason, "read-only file system") {
			t.Errorf("%+v", c)
		}
		check(t, at[i], m)
	}
	expect(t, n, map[string]float64{"copies_total failed": 2, "copied_bytes_total": 0, "cache_bytes memory leased": 16 * chunk})
}

// TestBothDiskEvicts has a disk for two models: a copy takes the place of what nobody leases, also in
// memory, and of nothing else; a load takes a copy's.
func TestBothDiskEvicts(t *testing.T) {
	models := eights(t, 4)
	large := fetchtest.NewModel(t, "google/large", map[string]int{"a": 19 * chunk})
	b := newBucket(append(models, large)...)
	b.release()
	dir, _ := mounttest.Ext4(t, 64, "")
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 26*chunk), b, copyAgain)
	fillUp(t, dir, 20*chunk)
	var at []string
	for i, m := range models[:2] {
		at = append(at, target(t))
		publish(t, n, m, at[i])
		wait(t, n, m)
		awaitCopy(t, n, m, "complete")
	}
	wait(t, n, models[2])
	if c := awaitCopy(t, n, models[2], "failed"); !strings.Contains(c.Reason, "0 more could be evicted") {
		t.Errorf("%+v", c)
	}
	unpublish(t, n, at[0])
	wait(t, n, models[2]) // asks again
	awaitCopy(t, n, models[2], "complete")
	if e := statusOf(n.Status(), models[0]); e.Medium != cache.Memory || e.State != "complete" || e.Copy != nil && (e.Copy.State != "failed" || !strings.Contains(e.Copy.Reason, "needed for another model")) {
		t.Errorf("%+v, %+v", e, e.Copy)
	}
	expect(t, n, map[string]float64{"evictions_total disk": 1, "evictions_total memory": 0, "cache_bytes disk copy": 16 * chunk})
	// What fits into memory only if leased models go is loaded to the disk, in place of all copies.
	publish(t, n, large, at[0])
	check(t, at[0], large)
	if e := statusOf(n.Status(), large); e.Medium != cache.Disk {
		t.Errorf("%+v", e)
	}
	check(t, at[1], models[1])
	expect(t, n, map[string]float64{"cache_bytes disk copy": 0, "evictions_total disk": 3, "evictions_total memory": 0})
	unpublish(t, n, at[0])
	unpublish(t, n, at[1])
	nothingLeft(t, n)
}

// TestBothGivesWay: while bytes come for readers nothing is copied; memory that is needed meanwhile is
// given up, with what the disk has by then, and nothing is left of a copy that the node's end stopped.
func TestBothGivesWay(t *testing.T) {
	models := eights(t, 3)
	b := newBucket(models...)
	b.hold = func(key string) bool { return strings.HasPrefix(key, "google/m1/") && strings.HasSuffix(key, "/b/c") }
	dir := t.TempDir()
	media := withMemory(t, dir, cache.Both, 20*chunk)
	n := startNodeOn(t, dir, media, b)
	loading := target(t)
	publish(t, n, models[1], loading)
	wait(t, n, models[0])
	awaitCopy(t, n, models[0], "copying")
	wait(t, n, models[2])
	awaitCopy(t, n, models[2], "copying")
	awaitCopy(t, n, models[1], "waiting")
	first := statusOf(n.Status(), models[0])
	if first.Medium != cache.Disk || first.State != "partial" || first.Verified != 0 || first.Copy != nil {
		t.Errorf("%+v", first)
	}
	expect(t, n, map[string]float64{"copies_total stopped": 1, "evictions_total memory": 1, "copied_bytes_total": 0, "cache_bytes disk partial": 8 * chunk})
	b.release()
	for _, m := range models[1:] {
		awaitCopy(t, n, m, "complete")
	}
	at := target(t)
	publish(t, n, models[0], at)
	check(t, at, models[0])
	check(t, loading, models[1])
	unpublish(t, n, at)
	unpublish(t, n, loading)
	nothingLeft(t, n)
}

// TestBothAtOnce has many who publish, unpublish and wait, with room for a few models in memory and on
// the disk.
func TestBothAtOnce(t *testing.T) {
	models := eights(t, 6)
	b := newBucket(models...)
	b.release()
	dir, _ := mounttest.Ext4(t, 64, "")
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 18*chunk), b, grace(time.Millisecond), copyAgain)
	fillUp(t, dir, 40*chunk)
	ended := make(chan error)
	for seed := range 3 {
		at := target(t)
		random := rand.New(rand.NewPCG(uint64(seed), 7))
		go func() {
			var errs []error
			for range 30 {
				m := models[random.IntN(len(models))]
				_, err := n.Publish(t.Context(), m.Ref(), at)
				if err == nil {
					err = errors.Join(compare(at, m.Manifest, m.Content), n.Unpublish(t.Context(), at))
				}
				errs = append(errs, err)
			}
			ended <- errors.Join(errs...)
		}()
	}
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t, n)
	n.stop()
	for _, place := range []string{dir, filepath.Join(dir, "memory")} {
		for _, name := range files(t, filepath.Join(place, "entries")) {
			if strings.HasPrefix(name, ".") {
				t.Errorf("left: %s", name)
			}
		}
	}
	c, err := cache.OpenMedia(dir, withMemory(t, dir, cache.Both, 18*chunk), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range append(c.Entries(), c.Copies()...) {
		i := slices.IndexFunc(models, func(m *fetchtest.Model) bool { return m.Manifest.Model == e.Manifest().Model })
		if e.Complete() {
			if err := compare(e.Dir(), e.Manifest(), models[i].Content); err != nil {
				t.Errorf("%s on %s: %v", e.ID(), e.Place().Kind(), err)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
