package loader_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

var readers = []string{"read", "map", "fault", "reopen"}

// TestWorkerKilledAnywhere kills the worker after each number of chunks, with readers of every kind
// waiting for the next ones, and then once more. No reader sees it, and nothing is fetched twice.
func TestWorkerKilledAnywhere(t *testing.T) {
	mounttest.Need(t)
	const chunks = 8
	for n := range chunks {
		dir := t.TempDir()
		m := model(t, "google/gemma")
		writeBucket(t, dir, m)
		hold(t, dir, fmt.Sprintf("after %d", n))
		k := startKept(t, dir)
		at := target(t)
		if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
			t.Fatal(err)
		}
		var reading []*reading
		for _, mode := range readers {
			reading = append(reading, startReading(t, mode, at, dir, m))
		}
		s := k.await(t, func(s loader.Status) bool { return waiting(s) > 0 && s.Entries[0].InFlight == chunks-n })
		before := s.Entries[0].Verified
		device := mounts(t, at)[0].Device
		hold(t, dir, "after 0")
		k.killWorker(t)
		k.next(t)
		s = k.await(t, func(s loader.Status) bool {
			return waiting(s) > 0 && s.Entries[0].InFlight == chunks-n && len(s.Leases) == 1
		})
		if s.Entries[0].Verified != before || s.Mounts != 1 || s.Requests == 0 || s.Restarts != 1 {
			t.Errorf("after %d chunks, before there were %d bytes: %+v", n, before, s)
		}
		hold(t, dir, "")
		k.killWorker(t)
		k.next(t)
		if err := k.Wait(t.Context(), m.Ref(), nil); err != nil {
			t.Error(err)
		}
		for i, r := range reading {
			r.check(t, fmt.Sprintf("after %d chunks, %s", n, readers[i]))
		}
		check(t, at, m)
		s = k.await(t, func(loader.Status) bool { return true })
		if e := s.Entries[0]; before+e.Fetched != m.Manifest.Size() || e.State != "complete" || s.Restarts != 2 || s.Passthrough == "unknown" {
			t.Errorf("after %d chunks %d bytes were verified, then %d fetched: %+v", n, before, e.Fetched, s)
		}
		if after := mounts(t, at); len(after) != 1 || after[0].Device != device {
			t.Errorf("the mount of device %s became %+v", device, after)
		}
		if err := k.Unpublish(t.Context(), at); err != nil {
			t.Error(err)
		}
		if m := mounts(t, filepath.Join(dir, "cache"), at); len(m) > 0 {
			t.Errorf("left: %+v", m)
		}
	}
}

// TestWorkerKilledWithCompleteFiles has files open in both ways when the worker is killed, and opened
// in both ways afterwards: one inode's opens must name one backing file, also across workers.
func TestWorkerKilledWithCompleteFiles(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "model-2")
	k := startKept(t, dir)
	at := target(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	want := m.Content("model-1.safetensors")
	served := fetched(t, at, "model-1.safetensors", want)
	through := fetched(t, at, "model-1.safetensors", want) // complete by now
	mapping, err := unix.Mmap(int(through.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapping)
	for range 3 {
		k.killWorker(t)
		if !bytes.Equal(mapping, want) {
			t.Error("the mapping has other bytes")
		}
		again := fetched(t, at, "model-1.safetensors", want) // waits for the next worker
		for _, f := range []*os.File{served, through, again} {
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("a file that is open: %v", err)
			}
		}
		fetched(t, at, "config.json", m.Content("config.json"))
		k.next(t)
	}
	r := startReading(t, "reopen", at, dir, m)
	hold(t, dir, "")
	k.killWorker(t)
	k.next(t)
	r.check(t, "a reader")
}

// TestKilledWhileTakingOver kills the next worker too, before, while and after it takes over.
func TestKilledWhileTakingOver(t *testing.T) {
	mounttest.Need(t)
	for _, when := range []string{"found an entry", "a mount is taken over"} {
		dir := t.TempDir()
		m := model(t, "google/gemma")
		writeBucket(t, dir, m)
		hold(t, dir, "after 3")
		k := startKept(t, dir)
		at := target(t)
		if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
			t.Fatal(err)
		}
		var reading []*reading
		for _, mode := range readers {
			reading = append(reading, startReading(t, mode, at, dir, m))
		}
		k.await(t, func(s loader.Status) bool { return waiting(s) > 0 })
		hold(t, dir, "")
		if err := os.WriteFile(filepath.Join(dir, "die"), []byte(when), 0o644); err != nil {
			t.Fatal(err)
		}
		k.killWorker(t)
		for i, r := range reading {
			r.check(t, when+", "+readers[i])
		}
		check(t, at, m)
		if s := k.await(t, func(s loader.Status) bool { return len(s.Leases) == 1 }); s.Restarts != 2 {
			t.Errorf("%d restarts", s.Restarts)
		}
	}
}

// TestWaitGoesOn: who waits for a load waits on when the worker is replaced.
func TestWaitGoesOn(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "after 2")
	k := startKept(t, dir)
	waited, progress := make(chan error, 1), make(chan struct{}, 1000)
	go func() {
		waited <- control.Dial(filepath.Join(dir, "socket")).Wait(t.Context(), m.Ref(), func(loader.Progress) { progress <- struct{}{} })
	}()
	<-progress
	hold(t, dir, "")
	k.killWorker(t)
	k.next(t)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if s := k.await(t, func(loader.Status) bool { return true }); s.Entries[0].State != "complete" {
		t.Errorf("%+v", s)
	}
}

// TestParentKilled: with the parent everything ends as if there were none, and the next node mends it.
func TestParentKilled(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "model-2")
	k := startKept(t, dir)
	at := target(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	fetched(t, at, "model-1.safetensors", m.Content("model-1.safetensors"))
	through := fetched(t, at, "model-1.safetensors", m.Content("model-1.safetensors"))
	blocked := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(at, "model-2.safetensors"))
		blocked <- err
	}()
	k.await(t, func(s loader.Status) bool { return waiting(s) > 0 })
	k.kill()
	if err := <-blocked; err == nil {
		t.Error("a read of what is not there succeeded")
	}
	if _, err := os.ReadFile(filepath.Join(at, "config.json")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("a new open: %v", err)
	}
	got := make([]byte, 100)
	if _, err := through.ReadAt(got, 5); err != nil || !bytes.Equal(got, m.Content("model-1.safetensors")[5:105]) {
		t.Errorf("an open complete file: %v", err)
	}
	hold(t, dir, "")
	k = startKept(t, dir)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Error(err)
	}
	check(t, at, m)
}

// spoil changes what was kept as the file at path says, which goes.
func spoil(kept []modelfs.Kept, path string) error {
	how, err := os.ReadFile(path)
	if err != nil || len(kept) == 0 {
		return nil
	}
	record := map[string]any{}
	if err := json.Unmarshal(kept[0].Record, &record); err != nil {
		return err
	}
	request, err := base64.StdEncoding.DecodeString(record["request"].(string))
	if err != nil {
		return err
	}
	switch string(how) {
	case "a kernel that cannot repeat requests":
		request[56] &^= 1 << 7 // bit 39 of the flags in INIT
		record["request"] = request
	case "an entry that has gone":
		record["dir"] = record["dir"].(string) + "x"
	case "another agreement with the kernel":
		record["answer"] = []byte("hello")
	case "nothing that can be read":
		kept[0].Record = []byte("{")
		return os.Remove(path)
	}
	kept[0].Record, err = json.Marshal(record)
	return errors.Join(err, os.Remove(path))
}

// TestNotTakenOver: where a mount cannot be served again its readers get an error, as they would without
// a parent, and a new mount stands in its place.
func TestNotTakenOver(t *testing.T) {
	mounttest.Need(t)
	for how, says := range map[string]string{
		"a kernel that cannot repeat requests": "this kernel cannot repeat them",
		"an entry that has gone":               "its entry has gone",
		"another agreement with the kernel":    "agreed on something else",
		"nothing that can be read":             "what is kept of a connection",
	} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			m := model(t, "google/gemma")
			writeBucket(t, dir, m)
			hold(t, dir, "model-2")
			k := startKept(t, dir)
			at := target(t)
			if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
				t.Fatal(err)
			}
			r := startReading(t, "read", at, dir, m)
			k.await(t, func(s loader.Status) bool { return waiting(s) > 0 })
			hold(t, dir, "")
			if err := os.WriteFile(filepath.Join(dir, "spoil"), []byte(how), 0o644); err != nil {
				t.Fatal(err)
			}
			k.killWorker(t)
			k.next(t)
			if _, bad, err := r.result(); len(bad) == 0 || err != nil {
				t.Errorf("the reader that waited says %q, %v", bad, err)
			}
			if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
				t.Error(err)
			}
			check(t, at, m)
			if s := k.await(t, func(loader.Status) bool { return true }); s.Mounts != 0 || s.Restarts != 1 {
				t.Errorf("%+v", s)
			}
			if log, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || !strings.Contains(string(log), says) {
				t.Errorf("%v, the log has nothing of %q", err, says)
			}
			if err := k.Unpublish(t.Context(), at); err != nil {
				t.Error(err)
			}
			if m := mounts(t, filepath.Join(dir, "cache"), at); len(m) > 0 {
				t.Errorf("left: %+v", m)
			}
		})
	}
}

// TestIdleMountTakenOverWithoutRepeating: where no reader waits nothing has to be repeated.
func TestIdleMountTakenOverWithoutRepeating(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "model-2")
	k := startKept(t, dir)
	at := target(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	f := fetched(t, at, "model-1.safetensors", m.Content("model-1.safetensors"))
	hold(t, dir, "")
	if err := os.WriteFile(filepath.Join(dir, "spoil"), []byte("a kernel that cannot repeat requests"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.killWorker(t)
	k.next(t)
	if s := k.await(t, func(s loader.Status) bool { return len(s.Leases) == 1 }); s.Mounts != 1 {
		t.Errorf("%+v", s)
	}
	got := make([]byte, 100)
	if _, err := f.ReadAt(got, 7); err != nil || !bytes.Equal(got, m.Content("model-1.safetensors")[7:107]) {
		t.Errorf("an open file: %v", err)
	}
	check(t, at, m)
}

// TestUnpublishedWhileRead: a mount that is nowhere any more goes on too, for who has it open.
func TestUnpublishedWhileRead(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "after 2")
	k := startKept(t, dir)
	at, other := target(t), target(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(at, "model-1.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := k.Unpublish(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Publish(t.Context(), m.Ref(), other); err != nil {
		t.Fatal(err)
	}
	hold(t, dir, "")
	k.killWorker(t)
	want := m.Content("model-1.safetensors")
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file that is open: %v", err)
	}
	k.next(t)
	check(t, other, m)
	if s := k.await(t, func(loader.Status) bool { return true }); s.Mounts != 2 {
		t.Errorf("%+v", s)
	}
}

// TestRestartsLeakNothing: neither the parent nor the worker has more open after many restarts.
func TestRestartsLeakNothing(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	k := startKept(t, dir)
	parent := open(t, k.cmd.Process.Pid)
	at := target(t)
	hold(t, dir, "after 5")
	k.killWorker(t)
	k.next(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	cycle := func() (int, int) {
		hold(t, dir, "after 0")
		k.killWorker(t)
		k.next(t)
		k.await(t, func(s loader.Status) bool { return s.Mounts == 1 })
		k.Client.Close()
		return open(t, k.cmd.Process.Pid), open(t, k.worker)
	}
	p, w := cycle()
	for range 20 {
		if p2, w2 := cycle(); p2 != p || w2 > w+8 { // the worker's vary with what it is doing
			t.Fatalf("the parent has %d descriptors, before %d, the worker %d, before %d", p2, p, w2, w)
		}
	}
	if p != parent+1 {
		t.Errorf("the parent has %d descriptors with a mount, %d without", p, parent)
	}
	if err := k.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
	k.killWorker(t) // what it has said is heard before the next one begins
	k.next(t)
	if p := open(t, k.cmd.Process.Pid); p != parent {
		t.Errorf("the parent has %d descriptors, at first %d", p, parent)
	}
}

// open returns the number of a process's descriptors.
func open(t *testing.T, pid int) int {
	t.Helper()
	return len(files(t, fmt.Sprintf("/proc/%d/fd", pid)))
}
