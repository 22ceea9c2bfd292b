package stager_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		os.Exit(child(dir))
	}
	if road := os.Getenv(roadVariable); road != "" {
		os.Exit(runner(road))
	}
	goleak.VerifyTestMain(m)
}

const large = "model-4390912.safetensors" // of exampleRepo: 67 chunks, 34 parts

func stage(t *testing.T, source stager.Source, store stager.Store) (stager.Result, error) {
	t.Helper()
	return newStager(source, store).Stage(t.Context(), manifest.Reference{Repo: "google/gemma-test"})
}

// TestLies lets the source lie about every file in turn. The file is named, and is not in the bucket.
func TestLies(t *testing.T) {
	r := smallRepo()
	wrong := manifest.Digest{1}
	flip := func(data []byte) io.Reader {
		data = slices.Clone(data)
		data[len(data)/2] ^= 1
		return strings.NewReader(string(data))
	}
	for path, data := range r.files {
		lies := map[string]*memory{
			"hash": {repo: r, listing: func(files []stager.RemoteFile) []stager.RemoteFile {
				for i := range files {
					if files[i].Path != path {
						continue
					}
					if files[i].SHA256 != nil {
						files[i].SHA256 = &wrong
					} else {
						files[i].GitSHA1 = strings.Repeat("0", 40)
					}
				}
				return files
			}},
		}
		if len(data) > 0 {
			lies["bytes"] = &memory{repo: r, bytes: func(_ context.Context, p string, off int64, data []byte) (io.Reader, error) {
				if p == path && off == 0 {
					return flip(data), nil
				}
				return strings.NewReader(string(data)), nil
			}}
		}
		for name, source := range lies {
			t.Run(name+" of "+path, func(t *testing.T) {
				bucket := stagertest.NewBucket(t)
				_, err := stage(t, source, bucket.Store(nil))
				var mismatch *manifest.MismatchError
				if !errors.As(err, &mismatch) || mismatch.Path != path || strings.Contains(err.Error(), "\n") {
					t.Fatalf("%v", err)
				}
				model := manifest.Model{Repo: r.name, Commit: r.Commit()}
				for key := range bucket.Contents() {
					if key == model.Object(path) || key == model.Key() {
						t.Errorf("%s is there", key)
					}
				}
				if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); err != nil {
					t.Errorf("with a source that tells the truth: %v", err)
				}
				checkStaged(t, bucket.Store(nil), r)
			})
		}
	}
}

// TestBadSources lets the source break its contract or fail.
func TestBadSources(t *testing.T) {
	r := smallRepo()
	rename := func(names ...string) func([]stager.RemoteFile) []stager.RemoteFile {
		return func(files []stager.RemoteFile) []stager.RemoteFile {
			for _, n := range names {
				files = append(files, stager.RemoteFile{Path: n, GitSHA1: strings.Repeat("0", 40)})
			}
			return files
		}
	}
	for name, test := range map[string]struct {
		source *memory
		class  error
		text   string
	}{
		"traversal":    {&memory{repo: r, listing: rename("../etc/passwd")}, manifest.ErrInvalid, `"../etc/passwd"`},
		"case":         {&memory{repo: r, listing: rename("CONFIG.json")}, manifest.ErrInvalid, `"CONFIG.json"`},
		"twice":        {&memory{repo: r, listing: rename("config.json")}, manifest.ErrInvalid, `"config.json"`},
		"below a file": {&memory{repo: r, listing: rename("config.json/x")}, manifest.ErrInvalid, `"config.json/x"`},
		"nothing":      {&memory{repo: r, listing: func([]stager.RemoteFile) []stager.RemoteFile { return nil }}, manifest.ErrInvalid, "no files"},
		"short body": {&memory{repo: r, bytes: func(_ context.Context, _ string, _ int64, data []byte) (io.Reader, error) {
			return strings.NewReader(string(data[1:])), nil
		}}, io.ErrUnexpectedEOF, "ended at byte"},
		"refusal": {&memory{repo: r, bytes: func(_ context.Context, path string, _ int64, _ []byte) (io.Reader, error) {
			return nil, stager.Fail(fs.ErrPermission, "no access to %s", path)
		}}, fs.ErrPermission, "no access to "},
	} {
		t.Run(name, func(t *testing.T) {
			bucket := stagertest.NewBucket(t)
			_, err := stage(t, test.source, bucket.Store(nil))
			if !errors.Is(err, test.class) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if _, ok := bucket.Contents()[manifest.Model{Repo: r.name, Commit: r.Commit()}.Key()]; ok {
				t.Error("a manifest is there")
			}
		})
	}
	t.Run("pin", func(t *testing.T) {
		_, err := newStager(&memory{repo: r}, stagertest.NewBucket(t).Store(nil)).Stage(t.Context(), manifest.Reference{Repo: r.name, Pin: manifest.Digest{1}})
		if !errors.Is(err, manifest.ErrInvalid) {
			t.Error(err)
		}
	})
}

// TestOccupied finds something else under the names that are needed.
func TestOccupied(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	for _, name := range []string{"memory", "file", "gcs"} {
		for path, data := range r.files {
			for i, content := range [][]byte{append([]byte("x"), data...), append([]byte("x"), data...)[:len(data)]} {
				if string(content) == string(data) {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %d", name, path, i), func(t *testing.T) {
					store, key := buckets(t)[name](t), model.Object(path)
					if err := store.Put(t.Context(), key, 0, content); err != nil {
						t.Fatal(err)
					}
					_, err := stage(t, &memory{repo: r}, store)
					if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
						t.Errorf("%d bytes instead of %d: %v", len(content), len(data), err)
					}
					if contents(t, store)[key] != string(content) {
						t.Error("it is not untouched")
					}
				})
			}
		}
	}
}

// TestAdopts takes over what is there with the right content, without a byte from the source.
func TestAdopts(t *testing.T) {
	r := exampleRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			for path, data := range r.chosen() {
				if err := store.Put(t.Context(), model.Object(path), 0, data); err != nil {
					t.Fatal(err)
				}
			}
			source := &memory{repo: r}
			result, err := stage(t, source, store)
			if err != nil || result.Fetched != 0 || result.Reused != result.Manifest.Size() || len(source.fetched) != 0 {
				t.Fatalf("%+v, %v; fetched %v", result, err, source.fetched)
			}
			checkStaged(t, store, r)
		})
	}
}

// TestResumeSendsOnlyWhatIsMissing stops a run at the commit of the large file, removes parts of it, and
// counts what the next run fetches.
func TestResumeSendsOnlyWhatIsMissing(t *testing.T) {
	r := exampleRepo()
	const part = 2 * chunkSize
	for name, gone := range map[string][]int64{"none": nil, "first": {0}, "last": {66 / 2 * part}, "middle": {3 * part, 4 * part, 9 * part}} {
		t.Run(name, func(t *testing.T) {
			bucket := stagertest.NewBucket(t)
			_, err := stage(t, &memory{repo: r}, bucket.Store(func(_ int, write string) stagertest.Fault {
				if strings.HasPrefix(write, "commit ") && strings.HasSuffix(write, large) {
					return stagertest.DeadBefore
				}
				return stagertest.None
			}))
			if !errors.Is(err, stagertest.ErrFault) {
				t.Fatal(err)
			}
			removed := int64(0)
			store := bucket.Store(nil)
			for _, off := range gone {
				removed += bucket.RemovePart(large, off)
			}
			source := &memory{repo: r}
			result, err := stage(t, source, store)
			if err != nil {
				t.Fatal(err)
			}
			for piece := range source.fetched {
				// Files that were not finished when the process died are fetched, too.
				if path, _, _ := strings.Cut(piece, " "); path == large {
					removed -= chunkSize
				}
			}
			if removed != 0 {
				t.Errorf("fetched %v: %d bytes of the large file too few", source.fetched, removed)
			}
			if result.Fetched+result.Reused != result.Manifest.Size() {
				t.Errorf("%+v", result)
			}
			checkStaged(t, store, r)
		})
	}
}

// TestRecordOfOtherBytes replaces an object after its record was written: the record does not vouch for it.
func TestRecordOfOtherBytes(t *testing.T) {
	r := smallRepo()
	const path = "model-0327697.safetensors"
	key := manifest.Model{Repo: r.name, Commit: r.Commit()}.Object(path)
	bucket := stagertest.NewBucket(t)
	_, err := stage(t, &memory{repo: r}, bucket.Store(func(_ int, write string) stagertest.Fault {
		if strings.HasSuffix(write, ".json") && strings.HasPrefix(write, "put "+manifest.Private) {
			return stagertest.DeadBefore
		}
		return stagertest.None
	}))
	if !errors.Is(err, stagertest.ErrFault) {
		t.Fatal(err)
	}
	good := slices.Clone(r.files[path])
	bad := slices.Clone(good)
	bad[0] ^= 1
	bucket.Replace(key, bad)
	if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	bucket.Replace(key, good)
	source := &memory{repo: r}
	if result, err := stage(t, source, bucket.Store(nil)); err != nil || result.Fetched != 0 {
		t.Errorf("%+v, %v", result, err)
	}
	checkStaged(t, bucket.Store(nil), r)
}

// TestWrongPartIsFoundOut leaves a part of other bytes, with a note that fits them, behind a gap.
func TestWrongPartIsFoundOut(t *testing.T) {
	r, bad := smallRepo(), smallRepo()
	const path = "model-0327697.safetensors"
	bad.files[path] = slices.Clone(r.files[path])
	bad.files[path][100] ^= 1
	bucket := stagertest.NewBucket(t)
	liar := &memory{repo: bad, listing: func(files []stager.RemoteFile) []stager.RemoteFile {
		truth, _ := (&memory{repo: r}).Files(t.Context(), manifest.Model{})
		return truth
	}}
	_, err := stage(t, liar, bucket.Store(func(_ int, write string) stagertest.Fault {
		if write == "discard google/gemma-test/"+r.Commit()+"/"+path {
			return stagertest.DeadBefore
		}
		return stagertest.None
	}))
	var mismatch *manifest.MismatchError
	if !errors.As(err, &mismatch) {
		t.Fatal(err)
	}
	if bucket.RemovePart(path, 0) == 0 {
		t.Fatal("no part is left")
	}
	if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); !errors.As(err, &mismatch) || mismatch.Path != path || !strings.Contains(err.Error(), "run again") {
		t.Errorf("the run that meets the wrong part: %v", err)
	}
	if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); err != nil {
		t.Errorf("the run after it: %v", err)
	}
	checkStaged(t, bucket.Store(nil), r)
}

// TestCancel stops a run at each of its events; the next one completes it.
func TestCancel(t *testing.T) {
	r := smallRepo()
	total := 0
	count := stager.New(stager.Config{Source: &memory{repo: r}, Store: stagertest.NewBucket(t).Store(nil), ChunkSize: chunkSize, Progress: func(stager.Event) { total++ }})
	if _, err := count.Stage(t.Context(), manifest.Reference{Repo: r.name}); err != nil {
		t.Fatal(err)
	}
	if total < 15 {
		t.Errorf("%d events", total)
	}
	for stop := 1; stop < total; stop++ {
		bucket := stagertest.NewBucket(t)
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		s := stager.New(stager.Config{Source: &memory{repo: r}, Store: bucket.Store(nil), ChunkSize: chunkSize, Progress: func(stager.Event) {
			if n++; n == stop {
				cancel()
			}
		}})
		if _, err := s.Stage(ctx, manifest.Reference{Repo: r.name}); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("event %d: %v", stop, err)
		}
		cancel()
		if _, err := stage(t, &memory{repo: r}, bucket.Store(nil)); err != nil {
			t.Errorf("event %d, then again: %v", stop, err)
		}
		checkStaged(t, bucket.Store(nil), r)
	}
}

// TestEvents checks that the numbers add up.
func TestEvents(t *testing.T) {
	r := exampleRepo()
	var events []stager.Event
	s := stager.New(stager.Config{Source: &memory{repo: r}, Store: stagertest.NewBucket(t).Store(nil), ChunkSize: chunkSize, Progress: func(e stager.Event) { events = append(events, e) }})
	result, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
	if err != nil {
		t.Fatal(err)
	}
	size := result.Manifest.Size()
	first, last := events[0], events[len(events)-1]
	if first.Kind != stager.Planned || first.Total != size || first.Stored != 0 || last.Kind != stager.Committed || last.Stored != size || last.Fetched != size {
		t.Errorf("from %+v to %+v", first, last)
	}
	files := 0
	for i, e := range events[1:] {
		if e.Stored < events[i].Stored || e.Fetched < events[i].Fetched || e.Stored > e.Total {
			t.Errorf("%+v after %+v", e, events[i])
		}
		if e.Kind == stager.FileStored {
			files++
		}
	}
	if files != len(result.Manifest.Files) {
		t.Errorf("%d files of %d", files, len(result.Manifest.Files))
	}
}

// TestInFlight lets every range block, and counts them: as many as there are streams and buffers for, and
// of a part whose turn it is all.
func TestInFlight(t *testing.T) {
	for _, test := range []struct {
		name            string
		streams, chunks int
		want            int
	}{
		{"streams", 2, 6, 2}, {"buffers", 16, 3, 3}, {"a part", 16, 1, 1}, {"both", 4, 4, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := exampleRepo()
				bucket := stagertest.NewBucket(t)
				var mu sync.Mutex
				open := 0
				gate := make(chan struct{})
				source := &memory{repo: r, bytes: func(_ context.Context, _ string, _ int64, data []byte) (io.Reader, error) {
					mu.Lock()
					open++
					mu.Unlock()
					<-gate
					return strings.NewReader(string(data)), nil
				}}
				s := stager.New(stager.Config{Source: source, Store: bucket.Store(nil), ChunkSize: chunkSize, Memory: int64(test.chunks) * chunkSize, Streams: test.streams})
				done := make(chan error)
				go func() {
					_, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
					done <- err
				}()
				synctest.Wait()
				mu.Lock()
				if open != test.want {
					t.Errorf("%d ranges at once, want %d", open, test.want)
				}
				mu.Unlock()
				close(gate)
				if err := <-done; err != nil {
					t.Error(err)
				}
				checkStaged(t, bucket.Store(nil), r)
			})
		})
	}
}

// TestFullBucket gets the store's error classes through.
func TestFullBucket(t *testing.T) {
	for _, class := range []error{syscall.ENOSPC, syscall.EROFS, fs.ErrPermission, fs.ErrNotExist} {
		_, err := stage(t, &memory{repo: smallRepo()}, refusing{stagertest.NewBucket(t).Store(nil), class})
		if !errors.Is(err, class) {
			t.Errorf("%v: %v", class, err)
		}
	}
}

type refusing struct {
	stager.Store
	err error
}

func (r refusing) Upload(context.Context, string, string, int64) (stager.Upload, error) {
	return nil, stager.Fail(r.err, "refused")
}
