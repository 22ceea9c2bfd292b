package stager_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// nextCommit is a later commit of r: a small file and a shard are changed, a shard is renamed, one is twice
// there, and the rest is as it was. It returns the paths of the files that have to be fetched, too.
func nextCommit(r *repo) (*repo, []string) {
	n := &repo{name: r.name, large: r.large, files: maps.Clone(r.files), tip: strings.Repeat("fedcba9876", 4)}
	n.files["config.json"] = []byte(`{"a":2}`)
	changed := slices.Clone(r.files["model-0065536.safetensors"])
	changed[100] ^= 1
	n.files["model-0065536.safetensors"] = changed
	n.files["renamed/model.safetensors"] = r.files["model-0327697.safetensors"]
	n.files["twice.safetensors"] = r.files["model-0327697.safetensors"]
	delete(n.files, "model-0327697.safetensors")
	var fetched []string
	for path, data := range n.chosen() {
		// git's sha1 says nothing of the sha256 that manifests have.
		if len(data) < n.large || path == "model-0065536.safetensors" {
			fetched = append(fetched, path)
		}
	}
	slices.Sort(fetched)
	return n, fetched
}

func sizes(r *repo, paths []string) (n int64) {
	for _, p := range paths {
		n += int64(len(r.files[p]))
	}
	return n
}

// alone is what a bucket has where the commits were staged with nothing to copy from, and no ref.
func alone(t *testing.T, repos ...*repo) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, r := range repos {
		bucket := stagertest.NewBucket(t)
		if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, bucket.Contents()) // the ref is the last one's
	}
	return all
}

// TestNextCommit stages two commits from the Hub to each kind of bucket. What has not changed costs no
// request for bytes, and the bucket is what it would be if everything had been fetched.
func TestNextCommit(t *testing.T) {
	first := exampleRepo()
	second, fetched := nextCommit(first)
	want := alone(t, first, second)
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			h, source := serveHub(t, hub.Config{}, first)
			if _, err := stage(t, source, open(t)); err != nil {
				t.Fatal(err)
			}
			h.Push(second)
			h.ResetRequests()
			var last stager.Event
			s := stager.New(stager.Config{Source: source, Store: open(t), ChunkSize: chunkSize, Progress: func(e stager.Event) { last = e }})
			result, err := s.Stage(t.Context(), manifest.Reference{Repo: first.name})
			if err != nil {
				t.Fatal(err)
			}
			bytes := sizes(second, fetched)
			if result.Fetched != bytes || result.Copied != result.Manifest.Size()-bytes || result.Reused != 0 || result.Already || result.Ref != "main" {
				t.Errorf("%+v, want %d bytes fetched of %d", result, bytes, result.Manifest.Size())
			}
			if last.Copied != result.Copied || last.Fetched != bytes || last.Stored != last.Total {
				t.Errorf("the last event is %+v", last)
			}
			resolved := make(map[string]bool)
			for _, r := range h.Requests() {
				if _, path, ok := strings.Cut(r.Path, "/resolve/"+second.Commit()+"/"); ok {
					resolved[path] = true
				}
			}
			if wanted := asked(second, fetched); !slices.Equal(slices.Sorted(maps.Keys(resolved)), wanted) {
				t.Errorf("the Hub was asked for %q, want %q", slices.Sorted(maps.Keys(resolved)), wanted)
			}
			if got := contents(t, open(t)); !maps.Equal(got, want) {
				t.Errorf("the bucket has %q", keys(got))
			}
		})
	}
}

// asked are the files of which the Hub has to say where they are: those that are fetched, and those whose
// header is looked at.
func asked(r *repo, fetched []string) []string {
	var paths []string
	for path, data := range r.chosen() {
		if len(data) > 0 && (slices.Contains(fetched, path) || strings.HasSuffix(path, ".safetensors")) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// TestNextCommitBudget counts the requests of a second commit.
func TestNextCommitBudget(t *testing.T) {
	first := exampleRepo()
	second, fetched := nextCommit(first)
	h, source := serveHub(t, hub.Config{}, first)
	b, open := serveBuckets(t)
	store := open("models", nil)
	if _, err := stage(t, source, store); err != nil {
		t.Fatal(err)
	}
	h.Push(second)
	h.ResetRequests()
	b.ResetRequests()
	if _, err := stage(t, source, store); err != nil {
		t.Fatal(err)
	}
	full := len(fetched) - 1 // one is empty, the others have a chunk each
	headers := 0
	for path := range second.chosen() {
		if strings.HasSuffix(path, ".safetensors") {
			headers++
		}
	}
	if got, want := hubRequests(h), map[string]int{"auth-check": 1, "revision": 2, "tree": 1, "resolve": len(asked(second, fetched)), "bytes": full + headers}; !maps.Equal(got, want) {
		t.Errorf("the Hub is asked %v, want %v", got, want)
	}
	copied := len(second.chosen()) - len(fetched)
	want := map[string]int{
		"list":    4,                        // parts at the beginning and the end, objects, other commits
		"get":     3 + copied,               // manifest, ref, the other manifest; what is copied
		"insert":  len(fetched) + 1 + 1 + 1, // files, the trial, manifest, ref
		"rewrite": copied,
		"delete":  1, // the trial
	}
	if got := bucketRequests(b); !maps.Equal(got, want) {
		t.Errorf("the bucket is asked %v, want %v", got, want)
	}
}

// TestNextCommitInSteps copies where the service needs several calls for a shard.
func TestNextCommitInSteps(t *testing.T) {
	first := exampleRepo()
	second, fetched := nextCommit(first)
	b, open := serveBuckets(t)
	b.RewriteAtOnce = 3 * chunkSize
	for _, r := range []*repo{first, second} {
		result, err := stage(t, &memory{repo: r}, open("models", nil))
		if err != nil {
			t.Fatal(err)
		}
		if r == second && result.Fetched != sizes(second, fetched) {
			t.Errorf("%+v", result)
		}
	}
	steps := 0
	for path, data := range second.chosen() {
		if !slices.Contains(fetched, path) {
			steps += int(max(1, manifest.NumChunks(int64(len(data)), 3*chunkSize)))
		}
	}
	if got := bucketRequests(b)["rewrite"]; got != steps {
		t.Errorf("%d rewrites, want %d", got, steps)
	}
	if got := contents(t, open("models", nil)); !maps.Equal(got, alone(t, first, second)) {
		t.Errorf("the bucket has %q", keys(got))
	}
}

// TestUnusable damages what a second commit could be copied from. It is fetched instead.
func TestUnusable(t *testing.T) {
	first := smallRepo()
	second, fetched := nextCommit(first)
	const path = "model-0327697.safetensors"
	model := manifest.Model{Repo: first.name, Commit: first.Commit()}
	for name, test := range map[string]struct {
		damage func(b *stagertest.Bucket)
		all    bool // nothing is copied
	}{
		"object is gone":        {func(b *stagertest.Bucket) { b.Remove(model.Object(path)) }, false},
		"object has other size": {func(b *stagertest.Bucket) { b.Replace(model.Object(path), []byte("x")) }, false},
		"object has other bytes": {func(b *stagertest.Bucket) {
			data := slices.Clone(first.files[path])
			data[7] ^= 1
			b.Replace(model.Object(path), data)
		}, false},
		"manifest is gone":    {func(b *stagertest.Bucket) { b.Remove(model.Key()) }, true},
		"manifest is damaged": {func(b *stagertest.Bucket) { b.Replace(model.Key(), []byte("{}")) }, true},
		"manifest of another": {func(b *stagertest.Bucket) {
			raw := strings.Replace(b.Contents()[model.Key()], model.Commit, strings.Repeat("9", 40), 1)
			b.Replace(model.Key(), []byte(raw))
		}, true},
		"manifest with other chunks": {func(b *stagertest.Bucket) {
			other := stager.New(stager.Config{Source: &memory{repo: first}, Store: stagertest.NewBucket(t).Store(nil), ChunkSize: 2 * chunkSize})
			result, err := other.Stage(t.Context(), manifest.Reference{Repo: first.name})
			if err != nil {
				t.Fatal(err)
			}
			b.Replace(model.Key(), result.Raw)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := stagertest.NewBucket(t)
			if _, err := stage(t, &memory{repo: first}, b.Store(nil)); err != nil {
				t.Fatal(err)
			}
			test.damage(b)
			result, err := stage(t, &memory{repo: second}, b.Store(nil))
			if err != nil {
				t.Fatal(err)
			}
			want := result.Manifest.Size()
			if !test.all {
				want = sizes(second, append(slices.Clone(fetched), "renamed/model.safetensors", "twice.safetensors"))
			}
			if result.Fetched != want || result.Copied != result.Manifest.Size()-want {
				t.Errorf("%+v, want %d bytes fetched", result, want)
			}
			for key, data := range alone(t, second) {
				if b.Contents()[key] != data {
					t.Errorf("%s has other bytes", key)
				}
			}
		})
	}
}

// TestManyCommits looks at the last commits that were staged, and not at more.
func TestManyCommits(t *testing.T) {
	r := smallRepo()
	b := stagertest.NewBucket(t)
	for i := range 10 {
		one := &repo{name: r.name, large: r.large, files: map[string][]byte{}, tip: fmt.Sprintf("%040x", i+1)}
		one.files[fmt.Sprintf("w%d.safetensors", i)] = stagertest.Safetensors(2000 + i)
		if _, err := stage(t, &memory{repo: one}, b.Store(nil)); err != nil {
			t.Fatal(err)
		}
		maps.Copy(r.files, one.files)
		b.SetAge(manifest.Model{Repo: r.name, Commit: one.tip}.Key(), time.Duration(10-i)*time.Hour)
	}
	result, err := stage(t, &memory{repo: r}, b.Store(nil))
	if err != nil || result.Copied != 8*2000+2+3+4+5+6+7+8+9 {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestNextCommitCrashMatrix lets every write of a second commit go wrong in every way.
func TestNextCommitCrashMatrix(t *testing.T) {
	first := smallRepo()
	second, fetched := nextCommit(first)
	want := alone(t, first, second)
	after := func(t *testing.T, fault func(int, string) stagertest.Fault) (*stagertest.Bucket, *stagertest.Store, error) {
		b := stagertest.NewBucket(t)
		if _, err := stage(t, &memory{repo: first}, b.Store(nil)); err != nil {
			t.Fatal(err)
		}
		s := b.Store(fault)
		_, err := stage(t, &memory{repo: second}, s)
		return b, s, err
	}
	_, whole, err := after(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	// the trial, copy ×2, put ×3, manifest, ref, delete the trial
	if n := len(whole.Writes()); n != 9 {
		t.Errorf("%d writes: %q", n, whole.Writes())
	}
	cases := 0
	for n := range whole.Writes() {
		for _, fault := range allFaults {
			cases++
			b, _, err := after(t, func(i int, _ string) stagertest.Fault {
				if i == n {
					return fault
				}
				return stagertest.None
			})
			if !errors.Is(err, stagertest.ErrFault) {
				t.Errorf("write %d %s: %v", n, fault, err)
			}
			source := &memory{repo: second}
			if _, err := stage(t, source, b.Store(nil)); err != nil {
				t.Errorf("write %d %s, then again: %v", n, fault, err)
			}
			for piece := range source.fetched {
				if path, _, _ := strings.Cut(piece, " "); !slices.Contains(fetched, path) {
					t.Errorf("write %d %s: %s was fetched", n, fault, piece)
				}
			}
			if got := b.Contents(); !maps.Equal(got, want) {
				t.Errorf("write %d %s: the bucket has %q", n, fault, keys(got))
			}
		}
	}
	t.Logf("%d crashes", cases)
}

// TestRemovedMeanwhile takes an object away that an earlier run has left, between the moment when it was
// taken over and the commit. The run says so, and the next one mends it.
func TestRemovedMeanwhile(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	const path = "model-0065536.safetensors"
	b := stagertest.NewBucket(t)
	if err := b.Store(nil).Put(t.Context(), model.Object(path), 0, r.files[path]); err != nil {
		t.Fatal(err)
	}
	s := b.Store(nil)
	s.Before = func(write string) {
		if write == "put "+model.Key() {
			b.Remove(model.Object(path))
		}
	}
	if _, err := stage(t, &memory{repo: r}, s); err == nil || !strings.Contains(err.Error(), path+" was removed by another process") {
		t.Fatalf("%v", err)
	}
	if _, err := stage(t, &memory{repo: r}, b.Store(nil)); err != nil {
		t.Fatal(err)
	}
	checkStaged(t, b.Store(nil), r)
}

// TestNextCommitCloudStorageCrashMatrix lets every request of a second commit go wrong in every way, where
// the shard takes several calls.
func TestNextCommitCloudStorageCrashMatrix(t *testing.T) {
	first := smallRepo()
	second, fetched := nextCommit(first)
	want := alone(t, first, second)
	b, open := serveBuckets(t)
	b.RewriteAtOnce = 2 * chunkSize
	begin := func(name string) {
		if _, err := stage(t, &memory{repo: first}, open(name, nil)); err != nil {
			t.Fatal(err)
		}
	}
	begin("whole")
	all := &wire{at: -1}
	if _, err := stage(t, &memory{repo: second}, open("whole", all)); err != nil {
		t.Fatal(err)
	}
	for n := range all.requests {
		for _, fault := range allFaults {
			name := fmt.Sprintf("models-%d-%d", n, fault)
			begin(name)
			ctx, kill := context.WithCancel(t.Context())
			w := &wire{at: n, fault: fault, kill: kill}
			_, err := newStager(&memory{repo: second}, open(name, w)).Stage(ctx, manifest.Reference{Repo: second.name})
			kill()
			if dead := fault == stagertest.DeadBefore || fault == stagertest.DeadAfter; dead != (err != nil) {
				t.Errorf("%s %s: %v", w.requests[n], fault, err)
			}
			if err != nil {
				source := &memory{repo: second}
				if _, err := stage(t, source, open(name, nil)); err != nil {
					t.Errorf("%s %s, then again: %v", w.requests[n], fault, err)
				}
				for piece := range source.fetched {
					if path, _, _ := strings.Cut(piece, " "); !slices.Contains(fetched, path) {
						t.Errorf("%s %s: %s was fetched", w.requests[n], fault, piece)
					}
				}
			}
			if got := contents(t, open(name, nil)); !maps.Equal(got, want) {
				t.Errorf("%s %s: the bucket has %q", w.requests[n], fault, keys(got))
			}
		}
	}
	t.Logf("%d crashes", len(all.requests)*len(allFaults))
}

// unread is a store whose objects are not read back.
type unread struct {
	stager.Store
	t *testing.T
}

func (u unread) Open(_ context.Context, key string, _, _ int64) (io.ReadCloser, error) {
	u.t.Errorf("%s is read", key)
	return nil, fs.ErrPermission
}

// TestCopiedByAKilledRun takes over what a killed run has copied without reading it.
func TestCopiedByAKilledRun(t *testing.T) {
	first := smallRepo()
	second, _ := nextCommit(first)
	b := stagertest.NewBucket(t)
	if _, err := stage(t, &memory{repo: first}, b.Store(nil)); err != nil {
		t.Fatal(err)
	}
	copies := 0
	_, err := stage(t, &memory{repo: second}, b.Store(func(_ int, write string) stagertest.Fault {
		if strings.HasPrefix(write, "copy ") {
			if copies++; copies == 2 {
				return stagertest.DeadAfter
			}
		}
		return stagertest.None
	}))
	if !errors.Is(err, stagertest.ErrFault) {
		t.Fatal(err)
	}
	result, err := stage(t, &memory{repo: second}, unread{b.Store(nil), t})
	if err != nil || result.Copied != 0 || result.Reused != 2*int64(len(first.files["model-0327697.safetensors"])) {
		t.Errorf("%+v, %v", result, err)
	}
}
