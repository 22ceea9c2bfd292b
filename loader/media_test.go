package loader_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/memory"
)

// withMemory returns media that take so many bytes of memory.
func withMemory(t *testing.T, dir string, use cache.Kind, bytes int64) cache.Media {
	t.Helper()
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "memory"), unix.MNT_DETACH) })
	return cache.Media{Use: use, Memory: bytes, Account: func() (memory.Account, error) {
		return memory.Account{Total: 1 << 40, Free: 1 << 40, Bound: "the machine"}, nil
	}}
}

// onMedium returns where a model lies and why.
func onMedium(t *testing.T, n *node, m *fetchtest.Model) (cache.Kind, string) {
	t.Helper()
	for _, e := range n.Status().Entries {
		if strings.HasPrefix(e.Model, m.Manifest.Model.Repo+"@") {
			return e.Medium, e.Why
		}
	}
	t.Fatalf("%s is not there", m.Manifest.Model.Repo)
	return "", ""
}

// TestMedia has memory for one model: the first goes there, the second, while the first is leased, to
// the disk, and the third takes the first's place when nobody leases that. What is in memory, and its
// lease, outlive the node.
func TestMedia(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 4 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 8 * chunk}))
	}
	large := fetchtest.NewModel(t, "google/large", map[string]int{"a": 20 * chunk})
	b := newBucket(append(models, large)...)
	b.release()
	dir := t.TempDir()
	media := withMemory(t, dir, cache.Auto, 12*chunk)
	n := startNodeOn(t, dir, media, b)
	first, second := target(t), target(t)
	publish(t, n, models[0], first)
	publish(t, n, models[1], second)
	wait(t, n, models[0])
	wait(t, n, models[1])
	if on, why := onMedium(t, n, models[0]); on != cache.Memory || !strings.Contains(why, fmt.Sprintf("%d bytes fit into the", 8*chunk)) {
		t.Errorf("the first is on %s: %s", on, why)
	}
	if on, why := onMedium(t, n, models[1]); on != cache.Disk || !strings.Contains(why, "not in memory: google/m1@") || !strings.Contains(why, fmt.Sprintf("%d bytes are leased", 8*chunk)) {
		t.Errorf("the second is on %s: %s", on, why)
	}
	wait(t, n, large)
	if on, _ := onMedium(t, n, large); on != cache.Disk {
		t.Errorf("what memory never holds is on %s", on)
	}
	unpublish(t, n, first)
	wait(t, n, models[2])
	if on, why := onMedium(t, n, models[2]); on != cache.Memory || !strings.Contains(why, "after models that nobody leases went") {
		t.Errorf("the third is on %s: %s", on, why)
	}
	if got := present(n); got != "google/large google/m1 google/m2" {
		t.Errorf("present: %s", got)
	}
	publish(t, n, models[2], first)
	n.stop()

	n = startNodeOn(t, dir, media, b)
	check(t, first, models[2])
	wait(t, n, models[2]) // leases are taken over by now
	if on, why := onMedium(t, n, models[2]); on != cache.Memory || why != "" {
		t.Errorf("after a restart it is on %s: %s", on, why)
	}
	if s := n.Status(); len(s.Leases) != 2 || len(s.Media) != 2 || s.Media[1].Kind != cache.Memory || s.Media[1].Size != 12*chunk || !s.Media[1].New ||
		s.Media[1].HugePages == "" || !strings.Contains(s.Media[1].Charged, "the node's cgroup") || s.Media[0].Kind != cache.Disk || s.Media[0].Charged != "" {
		t.Errorf("%+v", s)
	}
	unpublish(t, n, first)
	unpublish(t, n, second)
	n.stop()

	// After a reboot memory is empty, and leases of what was there are dropped.
	n = startNodeOn(t, dir, media, b)
	publish(t, n, models[2], first)
	n.stop()
	for _, path := range []string{first, filepath.Join(dir, "memory")} {
		if err := unix.Unmount(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	n = startNodeOn(t, dir, media, b)
	publish(t, n, models[2], first)
	check(t, first, models[2])
	unpublish(t, n, first)
}

// TestLostLeaseInMemory: a mount whose lease was lost is known for the node's own, also from memory.
func TestLostLeaseInMemory(t *testing.T) {
	m := fetchtest.NewModel(t, "google/m", map[string]int{"a": 8 * chunk})
	b := newBucket(m)
	b.release()
	dir := t.TempDir()
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Memory, 12*chunk), b)
	at := target(t)
	wait(t, n, m)
	publish(t, n, m, at)
	n.stop()
	if err := os.RemoveAll(filepath.Join(dir, "leases")); err != nil {
		t.Fatal(err)
	}
	n = startNodeOn(t, dir, withMemory(t, dir, cache.Memory, 12*chunk), b)
	publish(t, n, m, at)
	if got := mounts(t, at); len(got) != 1 {
		t.Errorf("mounted: %+v", got)
	}
	check(t, at, m)
	if err := n.Unpublish(t.Context(), at); err != nil { // its folder stays: nobody knows any more whose it is
		t.Error(err)
	}
	nothingLeft(t, n)
}

// TestMemoryRefuses: memory alone says what it has, what it lacks, and who bounds it.
func TestMemoryRefuses(t *testing.T) {
	m := fetchtest.NewModel(t, "google/m", map[string]int{"a": 8 * chunk})
	b := newBucket(m)
	b.release()
	dir := t.TempDir()
	media := withMemory(t, dir, cache.Memory, 1<<30)
	media.Account = func() (memory.Account, error) {
		return memory.Account{Total: 1 << 40, Free: 4096, Bound: "the cgroup /pod", Spared: 512}, nil
	}
	n := startNodeOn(t, dir, media, b)
	at := target(t)
	_, err := n.Publish(t.Context(), m.Ref(), at)
	if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "\n") ||
		!strings.Contains(err.Error(), fmt.Sprintf("needs %d bytes, but %s/memory has 4096 available by the memory of the cgroup /pod, of which 512 bytes are left to others, 0 more could be evicted", 8*chunk, dir)) {
		t.Errorf("%v", err)
	}
	if s := n.Status(); len(s.Entries) != 0 || s.Media[1].Available != 4096 || s.Media[1].Bound == "" || s.Media[0].New {
		t.Errorf("%+v", s)
	}
}

// TestClockSetBack: what was used while the clock was years ahead is not younger for ever.
func TestClockSetBack(t *testing.T) {
	var models []*fetchtest.Model
	for i := range 3 {
		models = append(models, fetchtest.NewModel(t, fmt.Sprintf("google/m%d", i), map[string]int{"a": 8 * chunk}))
	}
	b := newBucket(models...)
	b.release()
	n := startNode(t, small(t, 18*chunk), b)
	wait(t, n, models[0])
	ahead := time.Now().AddDate(50, 0, 0)
	for _, e := range n.cache.Entries() {
		if err := os.Chtimes(filepath.Dir(e.Dir()), ahead, ahead); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, n, models[1])
	wait(t, n, models[2])
	if got := present(n); got != "google/m1 google/m2" {
		t.Errorf("the one that was used last went: %s", got)
	}
}
