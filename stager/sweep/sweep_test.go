package sweep_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/inventory"
	"github.com/headstart-serving/headstart/stager/stagertest"
	"github.com/headstart-serving/headstart/stager/sweep"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	day   = 24 * time.Hour
	older = 48 * time.Hour
)

var (
	one   = strings.Repeat("1", 40)
	two   = strings.Repeat("2", 40)
	three = strings.Repeat("3", 40)
)

// world is a bucket that a test fills.
type world struct {
	*stagertest.Bucket
	t *testing.T
}

func newWorld(t *testing.T) world { return world{stagertest.NewBucket(t), t} }

// put writes an object of a certain age.
func (w world) put(age time.Duration, key, data string) {
	w.t.Helper()
	if err := w.Store(nil).Put(context.Background(), key, 0, []byte(data)); err != nil {
		w.t.Fatal(err)
	}
	w.SetAge(key, age)
}

func commit(repo, sha string) manifest.Model { return manifest.Model{Repo: repo, Commit: sha} }

// stage writes a commit with files of their path's bytes, as a stager would.
func (w world) stage(age time.Duration, m manifest.Model, paths ...string) {
	w.t.Helper()
	slices.Sort(paths)
	all := &manifest.Manifest{Model: m, ChunkSize: 64 << 10}
	for _, p := range paths {
		sum := crc32.Checksum([]byte(p), manifest.Castagnoli)
		all.Files = append(all.Files, manifest.File{Path: p, Size: int64(len(p)), SHA256: sha256.Sum256([]byte(p)), CRC32C: sum, Chunks: []uint32{sum}})
		w.put(age, m.Object(p), p)
	}
	raw, err := manifest.Marshal(all)
	if err != nil {
		w.t.Fatal(err)
	}
	w.put(age, m.Key(), string(raw))
}

func (w world) ref(age time.Duration, m manifest.Model, name string) {
	w.t.Helper()
	w.put(age, manifest.RefKey(m.Repo, name), m.Commit)
}

// part writes what a stage keeps of a file.
func (w world) part(age time.Duration, m manifest.Model, name string) {
	w.t.Helper()
	w.put(age, inventory.PartsOf(m)+"00112233445566778899aabbccddeeff/"+name, "part")
}

func (w world) keys() []string { return slices.Sorted(maps.Keys(w.Contents())) }

// example has two commits of a model, a half-staged one, and what is nobody's.
func example(t *testing.T) world {
	w := newWorld(t)
	a, b, c := commit("org/name", one), commit("org/name", two), commit("org/name", three)
	w.stage(older, a, "config.json", "sub/w.safetensors")
	w.stage(older, b, "config.json", "w.safetensors")
	w.put(older, a.OrderKey(), "learnt")
	w.ref(older, a, "v1")
	w.ref(older, b, "main")
	w.ref(older, b, "release/2")
	w.part(older, c, "part-0-5")
	w.part(older, c, "record")
	w.put(older, c.Object("config.json"), "{}")
	for _, key := range []string{
		"org/name/README", "org/name/notes/" + one + "/x", a.Object("notes.txt"), "other/" + one + "/x", "models--org--name/snapshots/" + one + "/config.json",
		manifest.Private + "lock", manifest.Private + "org/name/refs.json", manifest.Private + "org/name/" + one + ".json.bak", manifest.Private + "parts/readme", one + "/x",
	} {
		w.put(10*older, key, "mine")
	}
	return w
}

func find(t *testing.T, b sweep.Bucket, name string, all bool) (sweep.Plan, error) {
	t.Helper()
	ref, err := manifest.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return sweep.Find(t.Context(), b, ref, all)
}

// sweepAway plans and runs.
func sweepAway(t *testing.T, w world, name string, all bool) (gone []string) {
	t.Helper()
	p, err := find(t, w.Store(nil), name, all)
	if err != nil {
		t.Fatal(err)
	}
	before := w.Contents()
	done, err := sweep.Run(t.Context(), w.Store(nil), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	after := w.Contents()
	bytes := int64(0)
	for key, data := range before {
		if _, ok := after[key]; !ok {
			gone = append(gone, key)
			bytes += int64(len(data))
		}
	}
	slices.Sort(gone)
	planned := 0
	for _, i := range p {
		planned += i.Count()
	}
	if done.Objects != len(gone) || done.Bytes != bytes || planned != done.Objects || p.Bytes() != bytes {
		t.Errorf("%s: %+v, planned %d of %d bytes; gone are %d of %d bytes", name, done, planned, p.Bytes(), len(gone), bytes)
	}
	for key := range after {
		if _, ok := before[key]; !ok {
			t.Errorf("%s: %s is new", name, key)
		}
	}
	return gone
}

func TestRemove(t *testing.T) {
	a, b, c := commit("org/name", one), commit("org/name", two), commit("org/name", three)
	parts := inventory.PartsOf(c) + "00112233445566778899aabbccddeeff/"
	ofA := []string{a.Key(), a.OrderKey(), manifest.RefKey("org/name", "v1"), a.Object("config.json"), a.Object("sub/w.safetensors")}
	ofB := []string{b.Key(), manifest.RefKey("org/name", "main"), manifest.RefKey("org/name", "release/2"), b.Object("config.json"), b.Object("w.safetensors")}
	ofC := []string{parts + "part-0-5", parts + "record", c.Object("config.json")}
	raw := example(t).Contents()[b.Key()]
	for name, want := range map[string][]string{
		"org/name": ofB, "org/name@release/2": ofB, "org/name@" + two: ofB, "org/name@sha256:" + manifest.Sum([]byte(raw)).String(): ofB,
		"org/name@v1": ofA, "org/name@" + one: ofA, "org/name@" + three: ofC, "all": slices.Concat(ofA, ofB, ofC),
	} {
		slices.Sort(want)
		w := example(t)
		if got := sweepAway(t, w, strings.Replace(name, "all", "org/name", 1), name == "all"); !slices.Equal(got, want) {
			t.Errorf("%s removes %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"org/other", "org/name@v2", "org/name@" + strings.Repeat("4", 40), "org/name@sha256:" + strings.Repeat("5", 64)} {
		if p, err := find(t, example(t).Store(nil), name, false); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestRemoveDamaged(t *testing.T) {
	w := example(t)
	a := commit("org/name", one)
	w.Replace(a.Key(), []byte("{"))
	if got := sweepAway(t, w, "org/name@"+one, false); !slices.Contains(got, a.Key()) || !slices.Contains(got, a.Object("config.json")) {
		t.Errorf("gone are %q", got)
	}
	w = example(t)
	w.Replace(a.Key(), []byte(`{"version":2}`))
	if _, err := find(t, w.Store(nil), "org/name", true); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a manifest of a newer version: %v", err)
	}
}

// TestGarbage is the table of what goes by which rules.
func TestGarbage(t *testing.T) {
	m, other := commit("org/name", one), commit("org/name", two)
	for _, test := range []struct {
		name         string
		fill         func(w world)
		unreferenced bool
		want         []string
	}{
		{"nothing", func(world) {}, true, nil},
		{"staged", func(w world) { w.stage(older, m, "a"); w.ref(older, m, "main") }, true, nil},
		{"staged without a ref", func(w world) { w.stage(older, m, "a") }, false, nil},
		{"staged without a ref, to go", func(w world) { w.stage(older, m, "a") }, true, []string{m.Key(), m.Object("a")}},
		{"staged without a ref just now", func(w world) { w.stage(time.Hour, m, "a") }, true, nil},
		{"staged without a ref, staging again", func(w world) { w.stage(older, m, "a"); w.part(time.Hour, m, "x") }, true, nil},
		{"old parts", func(w world) { w.part(older, m, "x") }, false, []string{inventory.PartsOf(m) + "00112233445566778899aabbccddeeff/x"}},
		{"young parts", func(w world) { w.part(time.Hour, m, "x") }, false, nil},
		{"old parts and a young one", func(w world) { w.part(older, m, "x"); w.part(time.Hour, m, "y") }, false, nil},
		{"old parts and a young object", func(w world) { w.part(older, m, "x"); w.put(time.Hour, m.Object("a"), "a") }, false, nil},
		{"old parts and an old object", func(w world) { w.part(older, m, "x"); w.put(older, m.Object("a"), "a") }, false,
			[]string{inventory.PartsOf(m) + "00112233445566778899aabbccddeeff/x", m.Object("a")}},
		{"old parts of what is staged", func(w world) { w.stage(older, m, "a"); w.part(older, m, "x") }, false, []string{inventory.PartsOf(m) + "00112233445566778899aabbccddeeff/x"}},
		{"objects of a repository that is known", func(w world) { w.stage(older, other, "a"); w.put(older, m.Object("a"), "a") }, false, []string{m.Object("a")}},
		{"objects of a repository that is not", func(w world) { w.put(older, m.Object("a"), "a") }, false, nil},
		{"objects below what is staged", func(w world) { w.stage(older, m, "a"); w.put(older, m.Object("b"), "b") }, false, nil},
		{"objects below a damaged manifest", func(w world) { w.put(older, m.Key(), "{}"); w.put(older, m.Object("a"), "a") }, true, nil},
		{"ref of nothing", func(w world) { w.ref(older, m, "main") }, false, []string{manifest.RefKey(m.Repo, "main")}},
		{"ref of nothing just now", func(w world) { w.ref(time.Hour, m, "main") }, false, nil},
		{"ref that is none", func(w world) { w.put(older, manifest.RefKey(m.Repo, "main"), "x") }, false, nil},
		{"temporary", func(w world) {
			w.put(older, ".headstart/parts/put-X", "x")
			w.put(time.Hour, ".headstart/parts/put-Y", "x")
		}, false, []string{".headstart/parts/put-X"}},
		{"a model without an owner", func(w world) { w.part(older, commit("gpt2", one), "x") }, false, []string{inventory.PartsOf(commit("gpt2", one)) + "00112233445566778899aabbccddeeff/x"}},
		// gpt2's commit 111… has a file 222…/a, which is also a file of the model gpt2/111….
		{"names that are both", func(w world) {
			w.stage(older, commit("gpt2/"+one, two), "a")
			w.part(older, commit("gpt2", one), "x")
		}, false, []string{inventory.PartsOf(commit("gpt2", one)) + "00112233445566778899aabbccddeeff/x"}},
		{"names that are both, below a damaged manifest", func(w world) {
			w.put(older, commit("gpt2", one).Key(), "{}")
			w.put(older, commit("gpt2/"+one, two).Object("a"), "a")
			w.part(older, commit("gpt2/"+one, two), "x")
		}, false, []string{inventory.PartsOf(commit("gpt2/"+one, two)) + "00112233445566778899aabbccddeeff/x"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			test.fill(w)
			before := w.keys()
			p, err := sweep.Garbage(t.Context(), w.Store(nil), sweep.Rules{Before: time.Now().Add(-day), Unreferenced: test.unreferenced})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.keys(), before) {
				t.Error("planning changes the bucket")
			}
			if _, err := sweep.Run(t.Context(), w.Store(nil), p, nil); err != nil {
				t.Fatal(err)
			}
			gone := slices.DeleteFunc(before, func(k string) bool { return slices.Contains(w.keys(), k) })
			slices.Sort(test.want)
			if !slices.Equal(gone, test.want) {
				t.Errorf("gone are %q, want %q", gone, test.want)
			}
		})
	}
}

var allFaults = []stagertest.Fault{stagertest.Lost, stagertest.Late, stagertest.DeadBefore, stagertest.DeadAfter}

// TestCrashMatrix lets every write of a removal go wrong in every way. At no moment is there a manifest that
// lacks an object, and the same command again, by the name that was typed first, ends in the same bucket.
func TestCrashMatrix(t *testing.T) {
	for _, name := range []string{"org/name", "org/name@release/2", "org/name@v1", "org/name@" + three} {
		whole := example(t)
		p, err := find(t, whole.Store(nil), name, false)
		if err != nil {
			t.Fatal(err)
		}
		s := whole.Store(nil)
		if _, err := sweep.Run(t.Context(), s, p, nil); err != nil {
			t.Fatal(err)
		}
		want := whole.Contents()
		cases := 0
		for n := range s.Writes() {
			for _, fault := range allFaults {
				cases++
				w := example(t)
				p, err := find(t, w.Store(nil), name, false)
				if err != nil {
					t.Fatal(err)
				}
				_, err = sweep.Run(t.Context(), w.Store(func(i int, _ string) stagertest.Fault {
					if i == n {
						return fault
					}
					return stagertest.None
				}), p, nil)
				if !errors.Is(err, stagertest.ErrFault) {
					t.Errorf("%s, write %d %s: %v", name, n, fault, err)
				}
				checkWhole(t, w)
				p, err = find(t, w.Store(nil), name, false)
				if err == nil {
					_, err = sweep.Run(t.Context(), w.Store(nil), p, nil)
				}
				if err != nil && !(errors.Is(err, fs.ErrNotExist) && maps.Equal(w.Contents(), want)) {
					t.Errorf("%s, write %d %s, then again: %v", name, n, fault, err)
				}
				if got := w.Contents(); !maps.Equal(got, want) {
					t.Errorf("%s, write %d %s: the bucket has %q", name, n, fault, w.keys())
				}
			}
		}
		t.Logf("%s: %d crashes", name, cases)
	}
}

// TestGarbageFinishesRemovals takes what a removal left that was killed.
func TestGarbageFinishesRemovals(t *testing.T) {
	whole := example(t)
	sweepAway(t, whole, "org/name@v1", false)
	sweepAway(t, whole, "org/name@"+three, false)
	for n := range 8 {
		w := example(t)
		p, err := find(t, w.Store(nil), "org/name@v1", false)
		if err != nil {
			t.Fatal(err)
		}
		_, err = sweep.Run(t.Context(), w.Store(func(i int, _ string) stagertest.Fault {
			if i == n {
				return stagertest.DeadAfter
			}
			return stagertest.None
		}), p, nil)
		removed := !slices.Contains(w.keys(), commit("org/name", one).Key())
		for _, key := range w.keys() {
			w.SetAge(key, older)
		}
		g, err2 := sweep.Garbage(t.Context(), w.Store(nil), sweep.Rules{Before: time.Now().Add(-day)})
		if err2 == nil {
			_, err2 = sweep.Run(t.Context(), w.Store(nil), g, nil)
		}
		if err2 != nil {
			t.Errorf("after write %d (%v): %v", n, err, err2)
		}
		for _, b := range []world{w, whole} {
			b.Remove(commit("org/name", one).Object("notes.txt")) // garbage once nothing says whose it is
		}
		if removed && !maps.Equal(w.Contents(), whole.Contents()) {
			t.Errorf("after write %d: the bucket has %q, want %q", n, w.keys(), whole.keys())
		}
		checkWhole(t, w)
	}
}

// checkWhole fails where a manifest names what is not there.
func checkWhole(t *testing.T, w world) {
	t.Helper()
	all := w.Contents()
	for key, data := range all {
		m, err := manifest.Parse([]byte(data))
		if err != nil || m.Model.Key() != key {
			continue
		}
		for _, f := range m.Files {
			if _, ok := all[m.Model.Object(f.Path)]; !ok {
				t.Errorf("%s names %s, which is gone", key, f.Path)
			}
		}
	}
}

// TestNothingNamedGoes makes random buckets and sweeps them by random rules, with somebody staging at random
// moments. What a manifest names that was not to go is there afterwards, and so is what nobody here made.
func TestNothingNamedGoes(t *testing.T) {
	runs := 800
	if testing.Short() {
		runs = 200
	}
	removed, refused := 0, 0
	for seed := range runs {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		w := newWorld(t)
		repos := []string{"org/name", "gpt2", "gpt2/" + one, "org/" + two}
		commits := []string{one, two, three}
		paths := []string{"a", "sub/b", "c.safetensors", two + "/a", one + "/" + two + "/c"}
		age := func() time.Duration { return time.Duration(r.IntN(4)) * 16 * time.Hour }
		some := func() []string {
			return slices.DeleteFunc(slices.Clone(paths), func(string) bool { return r.IntN(2) == 0 })
		}
		mine := map[string]bool{}
		tryPut := func(key, data string) {
			if _, ok := w.Contents()[key]; !ok {
				w.put(age(), key, data)
			}
		}
		var staged []manifest.Model
		for range 1 + r.IntN(5) {
			m := commit(repos[r.IntN(len(repos))], commits[r.IntN(len(commits))])
			_, is := w.Contents()[m.Key()]
			if s := some(); r.IntN(3) > 0 && len(s) > 0 && !is && !collides(w, m, s) {
				w.stage(age(), m, s...)
				staged = append(staged, m)
			}
			if r.IntN(3) == 0 {
				tryPut(inventory.PartsOf(m)+"00112233445566778899aabbccddeeff/part", "part")
			}
			if r.IntN(3) == 0 {
				p := paths[r.IntN(len(paths))]
				tryPut(m.Object(p), p) // what a stager takes over
			}
			if r.IntN(2) == 0 {
				tryPut(manifest.RefKey(m.Repo, []string{"main", "v1"}[r.IntN(2)]), m.Commit)
			}
			if r.IntN(8) == 0 {
				w.Replace(commit("org/name", one).Key(), []byte("{}"))
				w.SetAge(commit("org/name", one).Key(), age())
			}
			key := []string{"x/y", "org/README", manifest.Private + "x", "models--a/snapshots/" + one + "/f"}[r.IntN(4)]
			tryPut(key, "foreign")
			mine[key] = true
		}
		before := w.Contents()
		store := w.Store(nil)
		var p sweep.Plan
		var err error
		going := map[string]bool{}
		if r.IntN(2) == 0 && len(staged) > 0 {
			m := staged[r.IntN(len(staged))]
			p, err = sweep.Find(t.Context(), store, manifest.Reference{Repo: m.Repo, Revision: m.Commit}, r.IntN(3) == 0)
		} else {
			p, err = sweep.Garbage(t.Context(), store, sweep.Rules{Before: time.Now().Add(-day), Unreferenced: r.IntN(2) == 0})
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, i := range p {
			if i.Manifest.Key != "" {
				going[i.Manifest.Key] = true
			}
		}
		at, who := r.IntN(4), commit(repos[r.IntN(len(repos))], commits[r.IntN(len(commits))])
		if len(p) > 0 && r.IntN(2) == 0 {
			who = p[r.IntN(len(p))].Model
		}
		var late manifest.Model
		n := 0
		store.Before = func(string) {
			// Another process stages a commit that was not staged, with what is there and what is not.
			if _, is := before[who.Key()]; n == at && !is && who.Commit != "" && !collides(w, who, []string{"a"}) {
				late = who
				w.restage(who)
			}
			n++
		}
		done, err := sweep.Run(t.Context(), store, p, nil)
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("seed %d: %v", seed, err)
		}
		removed += done.Objects
		after := w.Contents()
		for key := range mine {
			if after[key] != before[key] {
				t.Errorf("seed %d: the foreign %s is gone", seed, key)
			}
		}
		for key, data := range before {
			m, bad := manifest.Parse([]byte(data))
			if bad != nil || m.Model.Key() != key || going[key] {
				continue
			}
			if after[key] != data {
				t.Errorf("seed %d: the manifest %s is gone", seed, key)
			}
			for _, f := range m.Files {
				if o := m.Model.Object(f.Path); after[o] != before[o] {
					t.Errorf("seed %d: %s, which %s names, is gone", seed, o, key)
				}
			}
		}
		if _, gone := after[late.Object("a")]; late.Commit != "" && !gone && err == nil {
			t.Errorf("seed %d: %s was staged meanwhile, lacks an object, and nobody says so", seed, late)
		}
		if err != nil {
			refused++
		}
	}
	t.Logf("%d buckets, %d objects removed, %d runs met somebody at work", runs, removed, refused)
	if removed == 0 || refused == 0 {
		t.Error("the test tests nothing")
	}
}

// restage commits m with the file a, which it takes over where it is there.
func (w world) restage(m manifest.Model) {
	other := newWorld(w.t)
	other.stage(0, m, "a")
	for key, data := range other.Contents() {
		if _, is := w.Contents()[key]; !is {
			w.put(0, key, data)
		}
	}
}

// collides tells names that are a file of the one model and below a commit of another: no stager can make both.
func collides(w world, m manifest.Model, paths []string) bool {
	all := w.Contents()
	for _, p := range paths {
		if data, ok := all[m.Object(p)]; ok && data != p {
			return true
		}
	}
	return false
}

// TestStagerMeanwhile lets a stager go on with what is to be swept, at three moments: it writes a part, or
// commits what it took over, before the last look; or it commits behind it. Then nothing goes, or it is said.
func TestStagerMeanwhile(t *testing.T) {
	m := commit("org/name", three)
	for _, test := range []struct {
		name   string
		before func(w world) // the run
		during func(w world) // the first removal
		stays  bool
	}{
		{"a part before", func(w world) { w.part(0, m, "part-8-5") }, nil, true},
		{"an object before", func(w world) { w.put(0, m.Object("b"), "b") }, nil, true},
		{"a commit before", func(w world) { w.restage(m) }, nil, true},
		{"a commit behind", nil, func(w world) { w.restage(m) }, false},
	} {
		w := newWorld(t)
		w.part(older, m, "part-0-5")
		w.put(older, m.Object("a"), "a")
		p, err := sweep.Garbage(t.Context(), w.Store(nil), sweep.Rules{Before: time.Now().Add(-day)})
		if err != nil || p.Bytes() != 5 {
			t.Fatalf("%+v, %v", p, err)
		}
		if test.before != nil {
			test.before(w)
		}
		s, once := w.Store(nil), false
		s.Before = func(string) {
			if test.during != nil && !once {
				test.during(w)
			}
			once = true
		}
		_, err = sweep.Run(t.Context(), s, p, nil)
		if !errors.Is(err, syscall.EBUSY) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", test.name, err)
		}
		if _, there := w.Contents()[m.Object("a")]; there != test.stays {
			t.Errorf("%s: the object is there: %t", test.name, there)
		}
	}
}

var _ sweep.Bucket = (*stagertest.Store)(nil)
