package modelfs_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// TestManyWaitingReaders: a thousand reads that wait, each for another chunk, hold up neither each other
// nor a read whose bytes are there, and cost no thread each.
func TestManyWaitingReaders(t *testing.T) {
	const readers = 1000
	f := newFake(t, map[string]int64{"here": 4 * chunk, "missing": readers * chunk})
	here, missing := f.index("here"), f.index("missing")
	fsys, dir := mounted(t, f)
	r := startReader(t, "each", filepath.Join(dir, "missing"), strconv.Itoa(chunk))
	f.awaitWaiting(func(n int) bool { return n >= readers })
	f.finish(t, here)
	for _, mode := range []string{"read", "map"} {
		if out, err := startReader(t, mode, filepath.Join(dir, "here")).result(); err != nil || out != f.m.Files[here].SHA256.String() {
			t.Errorf("%s of what is there: %s, %v", mode, out, err)
		}
	}
	if n := fsys.Stats().Waiting; n < readers {
		t.Errorf("%d wait", n)
	}
	if n := runtime.NumGoroutine(); n > readers+100 {
		t.Errorf("%d goroutines", n)
	}
	if n := threads(t); n > 100 {
		t.Errorf("%d threads", n)
	}
	f.arrive(t, missing)
	if out, err := r.result(); err != nil || out != f.m.Files[missing].SHA256.String() {
		t.Errorf("the readers: %s, %v", out, err)
	}
	if s := fsys.Stats(); s.Failed != 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}

// arrive makes all of a file arrive at once.
func (f *fake) arrive(t testing.TB, file int) {
	t.Helper()
	f.put(t, file, 0, f.m.Files[file].Size)
	f.change(func() {
		for i := range f.m.Files[file].Chunks {
			f.have[file][i] = true
		}
	})
}

// threads returns the number of threads of this process.
func threads(t testing.TB) (n int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(status, []byte("Threads:"))
	if _, err := fmt.Sscan(string(after), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStreamingReads: who reads from the beginning on has many large requests under way, and the kernel
// was told to read far ahead.
func TestStreamingReads(t *testing.T) {
	const size = 24 << 20
	f := newFake(t, map[string]int64{"a": size})
	fsys, dir := mounted(t, f)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	knob, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil || string(knob) != "16384\n" {
		t.Errorf("read_ahead_kb is %q, %v", knob, err)
	}
	r := startReader(t, "read", filepath.Join(dir, "a"))
	for i := range (4 << 20) / chunk { // the kernel doubles what it reads ahead as it goes
		f.deliver(t, 0, i)
	}
	f.awaitWaiting(func(n int) bool { return n >= 4 }) // and not one piece at a time
	f.arrive(t, 0)
	if out, err := r.result(); err != nil || out != f.m.Files[0].SHA256.String() {
		t.Errorf("%s, %v", out, err)
	}
	if s := fsys.Stats(); s.Reads > size>>20+16 { // the first ones are smaller
		t.Errorf("%d requests for %d MiB", s.Reads, size>>20)
	}
}

// TestOldKernel: without passthrough everything works by way of this process, and O_DIRECT stays refused.
func TestOldKernel(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 8 * chunk})
	mounttest.Need(t)
	dir := t.TempDir()
	fsys, err := modelfs.MountOld(dir, f, slog.New(slog.NewTextHandler(testLog{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fsys.Close(); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "a")
	mounttest.Polled(t, path)
	fsys.ForgetOpens()
	early := startReader(t, "map", path)
	f.awaitWaiting(func(n int) bool { return n > 0 })
	f.arrive(t, 0)
	for i, r := range []*reader{early, startReader(t, "map", path), startReader(t, "read", path)} {
		if out, err := r.result(); err != nil || out != f.m.Files[0].SHA256.String() {
			t.Errorf("reader %d: %s, %v", i, out, err)
		}
	}
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0); err != unix.EINVAL {
		unix.Close(fd)
		t.Errorf("O_DIRECT on a complete file that is served: %v", err)
	}
	if s := fsys.Stats(); fsys.Passthrough() || s.PassthroughOpens != 0 || s.ServedOpens != 3 || s.Failed != 0 || s.Reads == 0 {
		t.Errorf("%v, %+v", fsys.Passthrough(), s)
	}
}
