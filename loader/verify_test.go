package loader_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// spoilFile changes a byte of a file that nobody may write to, so that no time tells.
func spoilFile(t *testing.T, path string, off int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	f, err := os.OpenFile(path, os.O_RDWR, 0) // by root
	if err == nil {
		_, err = f.ReadAt(b[:], off)
	}
	if err == nil {
		_, err = f.WriteAt([]byte{b[0] ^ 1}, off)
	}
	if err := errors.Join(err, f.Close(), os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// verify returns what the node says last.
func verify(t *testing.T, n *node, m *fetchtest.Model) (loader.Check, error) {
	t.Helper()
	var last loader.Check
	err := n.Verify(t.Context(), m.Ref(), func(c loader.Check) { last = c })
	return last, err
}

// TestVerify spoils chunks under readers: they are named, and those alone are fetched again, in place, as
// the mapping of a reader shows. What the bucket does not give is waited for again by who asks next.
func TestVerify(t *testing.T) {
	mounttest.Need(t)
	m := fetchtest.NewModel(t, "google/gemma", map[string]int{"config.json": 7, "empty": 0, "w-1": 3*chunk + 5, "w-2": 2 * chunk})
	b := newBucket(m)
	b.release()
	n := startNode(t, t.TempDir(), b)
	if _, err := verify(t, n, m); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	wait(t, n, m)
	at := target(t)
	publish(t, n, m, at)
	if c, err := verify(t, n, m); err != nil || len(c.Wrong) > 0 || c.Checked != m.Manifest.Size() || c.Size != c.Checked {
		t.Errorf("%+v, %v", c, err)
	}
	requests := len(b.Requests())
	reader, err := os.Open(filepath.Join(at, "w-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	mapped, err := unix.Mmap(int(reader.Fd()), 0, 3*chunk+5, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	data := n.Status().Entries[0].Dir
	spoil := func() {
		spoilFile(t, filepath.Join(data, "w-1"), 3*chunk)
		spoilFile(t, filepath.Join(data, "w-2"), chunk+17)
	}
	spoil()
	if bytes.Equal(mapped, m.Content("w-1")) {
		t.Fatal("nothing is spoilt")
	}
	want := []string{"w-1 at 196608 (disk)", "w-2 at 65536 (disk)"}
	if c, err := verify(t, n, m); err != nil || !slices.Equal(c.Wrong, want) {
		t.Errorf("%+v, %v", c, err)
	}
	if !bytes.Equal(mapped, m.Content("w-1")) {
		t.Error("the reader's mapping is still wrong")
	}
	check(t, at, m)
	if got := len(b.Requests()) - requests; got != 2 {
		t.Errorf("%d requests for 2 chunks", got)
	}
	if e := n.Status().Entries[0]; e.State != "complete" || e.Leases != 1 {
		t.Errorf("%+v", e)
	}
	expect(t, n, map[string]float64{"wrong_chunks_total disk": 2})

	// Without the bucket.
	key := m.Manifest.Model.Object("w-2")
	object := b.Replace(key, nil)
	spoil()
	if c, err := verify(t, n, m); err == nil || !slices.Equal(c.Wrong, want) {
		t.Errorf("%+v, %v", c, err)
	}
	if e := n.Status().Entries[0]; e.State != "failed" || e.Reason == "" {
		t.Errorf("%+v", e)
	}
	b.Replace(key, object)
	wait(t, n, m)
	check(t, at, m)
	unpublish(t, n, at)
	nothingLeft(t, n)
	n.stop()
	n = startNode(t, n.dir, b)
	if c, err := verify(t, n, m); err != nil || len(c.Wrong) > 0 {
		t.Errorf("after a restart: %+v, %v", c, err)
	}
}

// TestVerifyBoth: the model in memory is mended from the bucket, and its copy on the disk is made anew.
func TestVerifyBoth(t *testing.T) {
	m := eights(t, 1)[0]
	b := newBucket(m)
	b.release()
	dir, _ := mounttest.Ext4(t, 64, "")
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 12*chunk), b)
	wait(t, n, m)
	awaitCopy(t, n, m, "complete")
	spoilFile(t, filepath.Join(n.cache.Entries()[0].Dir(), "a"), 5)
	spoilFile(t, filepath.Join(n.cache.Copies()[0].Dir(), "b/c"), 0)
	c, err := verify(t, n, m)
	if err != nil || !slices.Equal(c.Wrong, []string{"a at 0 (memory)", "b/c at 0 (disk)"}) || c.Checked != 16*chunk || c.Size != c.Checked {
		t.Errorf("%+v, %v", c, err)
	}
	awaitCopy(t, n, m, "complete")
	for _, e := range []*cache.Entry{n.cache.Entries()[0], n.cache.Copies()[0]} {
		if err := compare(e.Dir(), m.Manifest, m.Content); err != nil {
			t.Errorf("on %s: %v", e.Place().Kind(), err)
		}
	}
	expect(t, n, map[string]float64{"wrong_chunks_total disk": 1, "wrong_chunks_total memory": 1, "copies_total complete": 2, "copies_total failed": 0})
	if c, err := verify(t, n, m); err != nil || len(c.Wrong) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestWrongInMemory: what is wrong in memory does not get to the disk, and says what mends it.
func TestWrongInMemory(t *testing.T) {
	m, other := eights(t, 2)[0], eights(t, 2)[1]
	b := newBucket(m, other)
	b.hold = func(key string) bool { return strings.HasPrefix(key, "google/m1/") && strings.HasSuffix(key, "/b/c") }
	dir := t.TempDir()
	n := startNodeOn(t, dir, withMemory(t, dir, cache.Both, 20*chunk), b, copyAgain)
	at := target(t)
	publish(t, n, other, at)
	wait(t, n, m)
	awaitCopy(t, n, m, "copying")
	spoilFile(t, filepath.Join(statusOf(n.Status(), m).Dir, "a"), 2*chunk)
	b.release()
	if c := awaitCopy(t, n, m, "failed"); !strings.Contains(c.Reason, "crc32c") || !strings.Contains(c.Reason, "run headstart verify google/m0@") {
		t.Errorf("%+v", c)
	}
	if c, err := verify(t, n, m); err != nil || !slices.Equal(c.Wrong, []string{"a at 131072 (memory)"}) {
		t.Errorf("%+v, %v", c, err)
	}
	awaitCopy(t, n, m, "complete")
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestKilledWhileMending: a chunk that was found wrong counts no more, whoever dies before it is right.
func TestKilledWhileMending(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	first := startProcess(t, dir)
	at := target(t)
	if _, err := first.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(t.Context(), m.Ref(), nil); err != nil {
		t.Fatal(err)
	}
	first.kill()
	hold(t, dir, "model-1")
	second := startProcess(t, dir)
	e := statusOf(second.await(t, func(s loader.Status) bool { return len(s.Leases) == 1 }), m)
	spoilFile(t, filepath.Join(e.Dir, "model-1.safetensors"), chunk)
	ended := make(chan error, 1)
	go func() { ended <- second.Verify(t.Context(), m.Ref(), nil) }()
	s := second.await(t, func(s loader.Status) bool { return statusOf(s, m).InFlight == 1 })
	if e := statusOf(s, m); e.State != "loading" || e.Verified != e.Size-chunk {
		t.Errorf("%+v", e)
	}
	second.kill()
	if err := <-ended; err == nil {
		t.Error("it was verified")
	}
	if err := os.Remove(filepath.Join(dir, "hold")); err != nil {
		t.Fatal(err)
	}
	third := startProcess(t, dir)
	if err := third.Wait(t.Context(), m.Ref(), nil); err != nil {
		t.Error(err)
	}
	check(t, at, m)
	var c loader.Check
	if err := third.Verify(t.Context(), m.Ref(), func(got loader.Check) { c = got }); err != nil || len(c.Wrong) > 0 || c.Checked != m.Manifest.Size() {
		t.Errorf("%+v, %v", c, err)
	}
	if err := third.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
}
