package loader_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// copyTrial is one node that makes a copy and is killed.
type copyTrial struct {
	m     *fetchtest.Model
	die   string        // it kills itself when its log says so
	after time.Duration // else it is killed so long after the load; 0 when the copy is complete
}

// both gives a process memory with the disk behind it.
func both(c *exec.Cmd) { c.Env = append(c.Env, "LOADER_TEST_BOTH=1") }

func (c *copyTrial) complete(s loader.Status) bool {
	of := statusOf(s, c.m).Copy
	return of != nil && of.State == "complete"
}

// run has a reader of a model in memory, kills the node, and checks that the next node ends the copy,
// receives nothing again, and that no other trace is left; and that after a reboot the disk has the model, and
// the bucket is not asked. It returns how far the copy was when the node was killed, and how long a
// whole one takes if it was not.
func (c *copyTrial) run(t *testing.T) (found string, whole time.Duration) {
	dir := t.TempDir()
	disk, memory := filepath.Join(dir, "cache", "entries"), filepath.Join(dir, "cache", "memory")
	t.Cleanup(func() { _ = unix.Unmount(memory, unix.MNT_DETACH) })
	writeBucket(t, dir, c.m)
	if c.die != "" {
		if err := os.WriteFile(filepath.Join(dir, "die"), []byte(c.die), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := startProcess(t, dir, both)
	at := target(t)
	_, unanswered := first.Publish(t.Context(), c.m.Ref(), at)
	if unanswered != nil && c.die == "" {
		t.Fatal(unanswered)
	}
	err := first.Wait(t.Context(), c.m.Ref(), nil)
	began := time.Now()
	switch {
	case c.die != "":
		_ = first.cmd.Wait() // by its own hand
	case err != nil:
		t.Fatal(err)
	case c.after > 0:
		time.Sleep(c.after)
	default:
		first.await(t, c.complete)
		whole = time.Since(began)
	}
	first.kill()
	found = copiedSoFar(t, disk)
	second := startProcess(t, dir, both)
	if unanswered != nil { // it killed itself before: who asked asks again
		if _, err := second.Publish(t.Context(), c.m.Ref(), at); err != nil {
			t.Error(err)
		}
	}
	if err := second.Wait(t.Context(), c.m.Ref(), nil); err != nil {
		t.Error(err)
	}
	s := second.await(t, c.complete)
	if e := statusOf(s, c.m); e.Fetched != 0 || e.Medium != cache.Memory || e.Leases != 1 {
		t.Errorf("%s: %+v", found, e)
	}
	check(t, at, c.m)
	for _, place := range []string{disk, filepath.Join(memory, "entries")} {
		if got := files(t, place); len(got) != 1 || got[0] != s.Entries[0].Entry {
			t.Errorf("%s: there is %q", found, got)
		}
	}
	if err := second.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
	second.kill()
	if err := errors.Join(unix.Unmount(memory, 0), os.Rename(filepath.Join(dir, "bucket"), filepath.Join(dir, "away")), os.Mkdir(filepath.Join(dir, "bucket"), 0o755)); err != nil {
		t.Fatal(err)
	}
	third := startProcess(t, dir, both)
	ref := c.m.Ref()
	ref.Revision = c.m.Manifest.Model.Commit
	if p, err := third.Publish(t.Context(), ref, at); err != nil || p.Mode != loader.Bind {
		t.Errorf("%s: %+v, %v", found, p, err)
	}
	check(t, at, c.m)
	if err := third.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
	third.kill()
	return found, whole
}

// copiedSoFar says how far the one copy among the entries in dir is.
func copiedSoFar(t *testing.T, dir string) string {
	names := files(t, dir)
	if len(names) != 1 {
		return fmt.Sprintf("%d entries", len(names))
	}
	if strings.HasPrefix(names[0], ".") {
		return "being made"
	}
	record, err := os.ReadFile(filepath.Join(dir, names[0], "chunks"))
	if err != nil {
		t.Fatal(err)
	}
	head, chunks := record[:128], record[128:] // see package cache
	switch n := bytes.Count(chunks, []byte{1}); {
	case head[104] == 1:
		return "synced"
	case n == len(chunks):
		return "all chunks"
	case n > 0:
		return "some chunks"
	}
	return "no chunk"
}

// TestKilledWhileCopying kills the node at any moment of the copying of a model that is read: at what its
// log says, and after any time.
func TestKilledWhileCopying(t *testing.T) {
	mounttest.Need(t)
	m := fetchtest.NewModel(t, "google/trial", map[string]int{"config.json": 7, "empty": 0, "model-1.safetensors": 40*chunk + 5, "sub/a": chunk - 1})
	for die, want := range map[string]string{"copying a model from memory": "no chunk", "is on the disk too": "synced"} {
		if found, _ := (&copyTrial{m: m, die: die}).run(t); found != want {
			t.Errorf("killed at %q there was %s", die, found)
		}
	}
	found, whole := (&copyTrial{m: m}).run(t)
	if found != "synced" {
		t.Errorf("of a whole copy there was %s", found)
	}
	states := map[string]int{}
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 11))
		found, _ := (&copyTrial{m: m, after: 1 + time.Duration(random.Int64N(int64(whole)*2/3))}).run(t)
		states[found]++
	}
	t.Logf("a copy takes %v; what was there of it: %v", whole, states)
}
