package dir_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/dir"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const repo = "acme/tuned"

// write writes files below a directory.
func write(t testing.TB, root string, files map[string][]byte) string {
	t.Helper()
	for p, data := range files {
		name := filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func tuned() map[string][]byte {
	return map[string][]byte{"config.json": []byte("{}"), "model.safetensors": stagertest.Safetensors(300_000), "sub/tokenizer.json": []byte(`{"a":1}`), "empty.txt": nil}
}

func commitOf(t *testing.T, s *dir.Source) string {
	t.Helper()
	snapshot, err := s.Resolve(t.Context(), repo, "")
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.Model.Commit
}

// TestCommit is a function of paths and bytes, and of nothing else.
func TestCommit(t *testing.T) {
	root := write(t, t.TempDir(), tuned())
	first := commitOf(t, dir.New(root))
	if len(first) != 40 || !manifest.IsCommit(first) {
		t.Errorf("%s", first)
	}
	same := write(t, t.TempDir(), tuned())
	for _, p := range []string{".git/HEAD", ".cache/huggingface/x", ".headstart/state"} {
		write(t, same, map[string][]byte{p: []byte("x")})
	}
	if err := os.Chtimes(filepath.Join(same, "config.json"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(same, "config.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := commitOf(t, dir.New(same)); got != first {
		t.Errorf("a copy with other times, modes and private folders is %s, not %s", got, first)
	}
	seen := map[string]bool{first: true}
	for name, change := range map[string]func(map[string][]byte){
		"other bytes":  func(f map[string][]byte) { f["config.json"] = []byte("[]") },
		"another name": func(f map[string][]byte) { f["conf.json"] = f["config.json"]; delete(f, "config.json") },
		"a file more":  func(f map[string][]byte) { f["x"] = nil },
		"a file less":  func(f map[string][]byte) { delete(f, "empty.txt") },
		"another folder": func(f map[string][]byte) {
			f["tokenizer.json"] = f["sub/tokenizer.json"]
			delete(f, "sub/tokenizer.json")
		},
		"two that are turned": func(f map[string][]byte) {
			f["config.json"], f["sub/tokenizer.json"] = f["sub/tokenizer.json"], f["config.json"]
		},
	} {
		files := tuned()
		change(files)
		if got := commitOf(t, dir.New(write(t, t.TempDir(), files))); seen[got] {
			t.Errorf("%s is %s again", name, got)
		} else {
			seen[got] = true
		}
	}
}

// TestRevisions names what is found.
func TestRevisions(t *testing.T) {
	s := dir.New(write(t, t.TempDir(), tuned()))
	commit := commitOf(t, s)
	for revision, ref := range map[string]string{"": "main", "main": "main", "v2": "v2", "refs/pr/1": "refs/pr/1", commit: ""} {
		snapshot, err := s.Resolve(t.Context(), repo, revision)
		if err != nil || snapshot.Ref != ref || snapshot.Model != (manifest.Model{Repo: repo, Commit: commit}) {
			t.Errorf("%q: %+v, %v", revision, snapshot, err)
		}
	}
	if _, err := s.Resolve(t.Context(), repo, strings.Repeat("0", 40)); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), commit) {
		t.Errorf("another commit: %v", err)
	}
	for _, bad := range [][2]string{{repo, "../x"}, {"a/b/c", ""}, {repo, "a b"}} {
		if _, err := s.Resolve(t.Context(), bad[0], bad[1]); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestStages stages a folder, and stages it again after a file has changed.
func TestStages(t *testing.T) {
	root, bucket := write(t, t.TempDir(), tuned()), stagertest.NewBucket(t)
	run := func() stager.Result {
		t.Helper()
		r, err := stager.New(stager.Config{Source: dir.New(root), Store: bucket.Store(nil), ChunkSize: 64 << 10}).Stage(t.Context(), manifest.Reference{Repo: repo})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := run()
	for p, data := range tuned() {
		if got := bucket.Contents()[first.Manifest.Model.Object(p)]; got != string(data) {
			t.Errorf("%s has %d bytes", p, len(got))
		}
	}
	if again := run(); !again.Already || again.Sum != first.Sum {
		t.Errorf("%+v", again)
	}
	write(t, root, map[string][]byte{"config.json": []byte(`{"b":2}`)})
	second := run()
	if second.Already || second.Manifest.Model == first.Manifest.Model || bucket.Contents()[manifest.RefKey(repo, "main")] != second.Manifest.Model.Commit {
		t.Errorf("%+v", second)
	}
}

// TestReadsOnce hashes only what has changed since the last look.
func TestReadsOnce(t *testing.T) {
	root := write(t, t.TempDir(), tuned())
	name := filepath.Join(root, "model.safetensors")
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	s := dir.New(root)
	first := commitOf(t, s)
	// Other bytes under the same size, time and inode: whoever reads them again finds another commit.
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Chtimes(name, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := commitOf(t, s); got != first {
		t.Error("the file was read again")
	}
	if got := commitOf(t, dir.New(root)); got == first {
		t.Error("the file was not altered")
	}
	// The copy is compared all the same.
	bucket := stagertest.NewBucket(t)
	_, err = stager.New(stager.Config{Source: s, Store: bucket.Store(nil), ChunkSize: 64 << 10}).Stage(t.Context(), manifest.Reference{Repo: repo})
	if _, ok := errors.AsType[*manifest.MismatchError](err); !ok || len(bucket.Contents()[manifest.Model{Repo: repo, Commit: first}.Key()]) > 0 {
		t.Errorf("%v", err)
	}
}

// TestChanges changes a file at each moment between the look and the last byte.
func TestChanges(t *testing.T) {
	const path = "model.safetensors"
	for name, change := range map[string]func(name string) error{
		"appended": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("x")
			return err
		},
		"cut":       func(name string) error { return os.Truncate(name, 1000) },
		"rewritten": func(name string) error { return os.WriteFile(name, stagertest.Safetensors(300_001)[:300_000], 0o644) },
		"replaced": func(name string) error {
			return errors.Join(os.WriteFile(name+".new", stagertest.Safetensors(300_000), 0o644), os.Rename(name+".new", name))
		},
		"removed":            os.Remove,
		"replaced by a link": func(name string) error { return errors.Join(os.Remove(name), os.Symlink("/etc/passwd", name)) },
		"replaced by a pipe": func(name string) error { return errors.Join(os.Remove(name), unix.Mkfifo(name, 0o644)) },
	} {
		for _, when := range []string{"before it is opened", "while it is read"} {
			t.Run(name+" "+when, func(t *testing.T) {
				root := write(t, t.TempDir(), tuned())
				// Long ago, so that the time of a change is another one on a coarse clock too.
				if err := os.Chtimes(filepath.Join(root, path), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
					t.Fatal(err)
				}
				s := dir.New(root)
				model := manifest.Model{Repo: repo, Commit: commitOf(t, s)}
				all := func() error {
					if when == "before it is opened" {
						if err := change(filepath.Join(root, path)); err != nil {
							t.Fatal(err)
						}
					}
					r, err := s.Open(t.Context(), model, stager.RemoteFile{Path: path, Size: 300_000}, 0, 300_000)
					if err != nil {
						return err
					}
					defer r.Close()
					if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
						t.Fatal(err)
					}
					if when == "while it is read" {
						if err := change(filepath.Join(root, path)); err != nil {
							t.Fatal(err)
						}
					}
					_, err = io.ReadAll(r)
					return err
				}
				err := all()
				if when == "while it is read" && (strings.HasPrefix(name, "re") && name != "rewritten") {
					// The open file is the one that was found, whatever its name leads to now.
					if err != nil {
						t.Errorf("%v", err)
					}
					return
				}
				if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), path) {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

// TestRanges reads at the edges.
func TestRanges(t *testing.T) {
	root := write(t, t.TempDir(), tuned())
	s := dir.New(root)
	model := manifest.Model{Repo: repo, Commit: commitOf(t, s)}
	files, err := s.Files(t.Context(), model)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	i := slices.IndexFunc(files, func(f stager.RemoteFile) bool { return f.Path == "model.safetensors" })
	data := tuned()["model.safetensors"]
	n := int64(len(data))
	for _, r := range [][2]int64{{0, 1}, {0, n}, {1, n - 1}, {n - 1, 1}, {n / 2, n / 3}} {
		rd, err := s.Open(t.Context(), model, files[i], r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rd)
		rd.Close()
		if err != nil || !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
			t.Errorf("%v: %d bytes, %v", r, len(got), err)
		}
	}
	if _, err := s.Open(t.Context(), model, stager.RemoteFile{Path: "../x"}, 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that was not listed: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	s := dir.New(write(t, t.TempDir(), tuned()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Resolve(ctx, repo, ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
