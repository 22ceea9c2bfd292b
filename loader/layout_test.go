package loader_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
	"github.com/headstart-serving/headstart/manifest"
)

// snapshot is where the layout of the Hub's clients has the files of google/gemma.
const snapshot = "hub/models--google--gemma/snapshots/" + fetchtest.Commit

func publishHF(t *testing.T, n *node, ref manifest.Reference, at string) loader.Published {
	t.Helper()
	p, err := n.PublishAs(t.Context(), ref, at, loader.HF)
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode == loader.Stream {
		mounttest.Polled(t, filepath.Join(at, snapshot, "config.json"))
	}
	return p
}

// TestHF shows a model as a Hugging Face cache, while it loads and when it is complete, beside its
// plain layout: the same files, not a second copy.
func TestHF(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	n := startNode(t, t.TempDir(), b)
	plain, early, late := target(t), target(t), target(t)
	publish(t, n, m, plain)
	if p := publishHF(t, n, m.Ref(), early); p.Mode != loader.Stream || p.Layout != loader.HF {
		t.Errorf("%+v", p)
	}
	b.release()
	check(t, filepath.Join(early, snapshot), m)
	sameInode(t, filepath.Join(plain, "config.json"), filepath.Join(early, snapshot, "config.json"))
	wait(t, n, m)
	if p := publishHF(t, n, manifest.Reference{Repo: "google/gemma", Revision: fetchtest.Commit}, late); p.Mode != loader.Bind {
		t.Errorf("%+v", p)
	}
	check(t, filepath.Join(late, snapshot), m)
	sameInode(t, filepath.Join(n.dir, "entries", n.Status().Entries[0].Entry, "data/config.json"), filepath.Join(late, snapshot, "config.json"))
	for _, at := range []string{early, late} {
		if got, err := os.ReadFile(filepath.Join(at, "hub/models--google--gemma/refs/main")); err != nil || string(got) != fetchtest.Commit {
			t.Errorf("refs/main is %q, %v", got, err)
		}
		if got := slices.Concat(files(t, at), files(t, at+"/hub"), files(t, at+"/hub/models--google--gemma"), files(t, at+"/hub/models--google--gemma/refs")); strings.Join(got, " ") != "hub models--google--gemma refs snapshots main" {
			t.Errorf("the layout is %q", got)
		}
		if err := os.WriteFile(filepath.Join(at, "hub/x"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
			t.Errorf("writing: %v", err)
		}
	}
	for _, at := range []string{early, late, plain} {
		unpublish(t, n, at)
	}
	nothingLeft(t, n)
	if m := mounts(t, n.dir, filepath.Dir(early), filepath.Dir(late)); len(m) > 0 {
		t.Errorf("mounted: %+v", m)
	}
}

func sameInode(t *testing.T, a, b string) {
	t.Helper()
	var x, y unix.Stat_t
	if err := errors.Join(unix.Stat(a, &x), unix.Stat(b, &y)); err != nil || x.Dev != y.Dev || x.Ino != y.Ino {
		t.Errorf("%s and %s are two files: %v", a, b, err)
	}
}

// TestHFAgain publishes again what is there, what somebody has taken away, and what a restart leaves.
func TestHFAgain(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	b.release()
	b.Objects[manifest.RefKey("google/gemma", "refs/pr/1")] = []byte(fetchtest.Commit)
	dir, at := t.TempDir(), target(t)
	n := startNode(t, dir, b)
	ref := manifest.Reference{Repo: "google/gemma", Revision: "refs/pr/1"}
	publishHF(t, n, ref, at)
	if got, err := os.ReadFile(filepath.Join(at, "hub/models--google--gemma/refs/refs/pr/1")); err != nil || string(got) != fetchtest.Commit {
		t.Errorf("the revision that was asked for: %q, %v", got, err)
	}
	before := mounts(t, at)
	publishHF(t, n, ref, at)
	if after := mounts(t, at); len(after) != 2 || !slices.Equal(before, after) {
		t.Errorf("mounted %+v, before %+v", after, before)
	}
	if _, err := n.Publish(t.Context(), ref, at); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "in the layout hf: unpublish it first") {
		t.Errorf("in another layout: %v", err)
	}
	for _, taken := range []string{filepath.Join(at, snapshot), at} {
		if err := unix.Unmount(taken, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		publishHF(t, n, ref, at)
		check(t, filepath.Join(at, snapshot), m)
	}
	wait(t, n, m)
	n.stop() // what streamed is dead now
	n = startNode(t, dir, b)
	wait(t, n, m)
	check(t, filepath.Join(at, snapshot), m)
	if s := n.Status(); len(s.Leases) != 1 || s.Leases[0].Layout != loader.HF || len(mounts(t, at)) != 2 {
		t.Errorf("after a restart: %+v, %+v", s.Leases, mounts(t, at))
	}
	unpublish(t, n, at)
	nothingLeft(t, n)
}

// TestHFEvicted: what is around the files goes with them, also when it is a later process that finds
// the files gone.
func TestHFEvicted(t *testing.T) {
	first := fetchtest.NewModel(t, "google/gemma", map[string]int{"config.json": 8 * chunk})
	second := fetchtest.NewModel(t, "google/other", map[string]int{"config.json": 8 * chunk})
	b := newBucket(first, second)
	b.release()
	dir, at := small(t, 14*chunk), target(t)
	n := startNode(t, dir, b)
	publishHF(t, n, first.Ref(), at)
	unpublish(t, n, at)
	settle(n)
	if got := files(t, filepath.Join(dir, "hf")); len(got) != 1 {
		t.Errorf("%q", got)
	}
	wait(t, n, second)
	if got := files(t, filepath.Join(dir, "hf")); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	n.stop()
	if err := os.MkdirAll(filepath.Join(dir, "hf/google--gone@1/hub"), 0o755); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, dir, b)
	if err := n.Wait(context.Background(), second.Ref(), nil); err != nil {
		t.Error(err)
	}
	if got := files(t, filepath.Join(dir, "hf")); len(got) > 0 {
		t.Errorf("left by an earlier process: %q", got)
	}
}

// TestHFWorkerKilled: readers of a Hugging Face cache do not see that the node's worker is replaced, and
// its mounts stay the ones they were.
func TestHFWorkerKilled(t *testing.T) {
	mounttest.Need(t)
	dir, at := t.TempDir(), target(t)
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	hold(t, dir, "after 3")
	k := startKept(t, dir)
	if _, err := k.PublishAs(t.Context(), m.Ref(), at, loader.HF); err != nil {
		t.Fatal(err)
	}
	r := startReading(t, readers[0], filepath.Join(at, snapshot), dir, m)
	k.await(t, func(s loader.Status) bool { return waiting(s) > 0 })
	before := mounts(t, at)
	hold(t, dir, "")
	k.killWorker(t)
	k.next(t)
	if err := k.Wait(t.Context(), m.Ref(), nil); err != nil {
		t.Error(err)
	}
	r.check(t, readers[0])
	if _, err := k.PublishAs(t.Context(), m.Ref(), at, loader.HF); err != nil {
		t.Error(err)
	}
	if after := mounts(t, at); len(after) != 2 || !slices.Equal(before, after) {
		t.Errorf("mounted %+v, before %+v", after, before)
	}
	if err := k.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
	if m := mounts(t, filepath.Join(dir, "cache"), at); len(m) > 0 {
		t.Errorf("left: %+v", m)
	}
}

// TestCacheBehindALink: the cache's path may have symbolic links in it.
func TestCacheBehindALink(t *testing.T) {
	m := model(t, "google/gemma")
	b := newBucket(m)
	link, plain, hf := filepath.Join(t.TempDir(), "link"), target(t), target(t)
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, link, b)
	publish(t, n, m, plain)
	publishHF(t, n, m.Ref(), hf)
	b.release()
	check(t, plain, m)
	check(t, filepath.Join(hf, snapshot), m)
	unpublish(t, n, plain)
	unpublish(t, n, hf)
	nothingLeft(t, n)
}
