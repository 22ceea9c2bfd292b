package hub_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub"
)

// folder makes files with contents below a new folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		write(t, filepath.Join(root, path), text)
	}
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newDir(t *testing.T, root string) *hub.Dir {
	t.Helper()
	d, err := hub.NewDir(root)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func find(t *testing.T, root, name string) hub.Repo {
	t.Helper()
	r, err := newDir(t, root).Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func onDisk() map[string]string {
	return map[string]string{
		"org/tiny/config.json":           `{"model_type":"tiny"}`,
		"org/tiny/model.safetensors":     "weights",
		"org/tiny/sub/x.bin":             "",
		"org/tiny/.gitattributes":        "*.bin filter=lfs",
		"org/tiny/.git/HEAD":             "ref: refs/heads/main",
		"org/tiny/.cache/huggingface/x":  "left by a download",
		"org/file":                       "not a repository",
		"org/-bad/config.json":           "not a name",
		"other/config/model.safetensors": "weights",
	}
}

func TestAFolderIsARepository(t *testing.T) {
	root := folder(t, onDisk())
	d := newDir(t, root)
	names, err := d.Names()
	if got := strings.Join(names, " "); err != nil || got != "org/tiny other/config" {
		t.Errorf("names %s, %v", got, err)
	}
	r := find(t, root, "org/tiny")
	var got []string
	for _, f := range r.Files() {
		got = append(got, fmt.Sprintf("%s %d %t", f.Path, f.Size, f.LFS))
		text := onDisk()["org/tiny/"+f.Path]
		sum, err := f.SHA256()
		switch {
		case f.LFS && (err != nil || sum != sha256.Sum256([]byte(text))):
			t.Errorf("%s: sha256 %x, %v", f.Path, sum, err)
		case !f.LFS && f.GitSHA1 != hub.GitSHA1([]byte(text)):
			t.Errorf("%s: git sha1 %x", f.Path, f.GitSHA1)
		}
	}
	want := ".gitattributes 16 false, config.json 21 false, model.safetensors 7 true, sub/x.bin 0 true"
	if strings.Join(got, ", ") != want {
		t.Errorf("files %s, want %s", strings.Join(got, ", "), want)
	}

	s := serve(t, hub.Config{Find: d})
	s.get("/api/models/org/tiny").expect(t, 200)
	s.get("/api/models/org/none").expect(t, 401)
	s.get("/api/models/org/file").expect(t, 401)
	s.get("/api/models/org").expect(t, 401)
	if list := string(s.get("/").body); !strings.Contains(list, "org/tiny\nother/config\n") {
		t.Errorf("index %s", list)
	}
	redirect := s.get("/org/tiny/resolve/main/model.safetensors")
	if body := s.get(redirect.Header.Get("Location"), "Range", "bytes=3-").body; string(body) != "ghts" {
		t.Errorf("range of a file on disk: %q", body)
	}
}

func TestTheCommitIsTheContent(t *testing.T) {
	root := folder(t, onDisk())
	commit := find(t, root, "org/tiny").Commit()
	if len(commit) != 40 || !manifest.IsCommit(commit) {
		t.Fatalf("commit %q", commit)
	}
	if copied := find(t, folder(t, onDisk()), "org/tiny").Commit(); copied != commit {
		t.Errorf("a copy has commit %s, want %s", copied, commit)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(root, "org/tiny/config.json"), later, later); err != nil {
		t.Fatal(err)
	}
	if touched := find(t, root, "org/tiny").Commit(); touched != commit {
		t.Errorf("touched it has commit %s, want %s", touched, commit)
	}
	seen := map[string]string{commit: "as it was"}
	for name, change := range map[string]func(){
		"other bytes":  func() { write(t, filepath.Join(root, "org/tiny/model.safetensors"), "WEIGHTS") },
		"another file": func() { write(t, filepath.Join(root, "org/tiny/new.json"), "{}") },
		"another name": func() {
			if err := os.Rename(filepath.Join(root, "org/tiny/config.json"), filepath.Join(root, "org/tiny/config2.json")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		change()
		got := find(t, root, "org/tiny").Commit()
		if before, ok := seen[got]; ok {
			t.Errorf("with %s the commit is that of %s", name, before)
		}
		seen[got] = name
	}
}

func TestAChangedFolderIsANewCommit(t *testing.T) {
	root := folder(t, onDisk())
	s := serve(t, hub.Config{Find: newDir(t, root)})
	sha := func() string {
		var info struct{ SHA string }
		s.get("/api/models/org/tiny").decode(t, &info)
		return info.SHA
	}
	first := sha()
	to := s.get("/org/tiny/resolve/main/model.safetensors").Header.Get("Location")
	if again := sha(); again != first {
		t.Errorf("commit %s, then %s of the same files", first, again)
	}
	write(t, filepath.Join(root, "org/tiny/model.safetensors"), "other weights")
	r := s.get(to)
	r.expect(t, 500)
	if !strings.Contains(string(r.body), "has changed on disk") {
		t.Errorf("body %s", r.body)
	}
	if second := sha(); second == first {
		t.Error("changed files have the same commit")
	}
	s.get("/api/models/org/tiny/revision/"+first).expect(t, 404, "X-Error-Code", "RevisionNotFound")
	r = s.get("/org/tiny/resolve/main/model.safetensors")
	r.expect(t, 302, "X-Linked-Etag", fmt.Sprintf(`"%x"`, sha256.Sum256([]byte("other weights"))))
	if body := s.get(r.Header.Get("Location")).body; string(body) != "other weights" {
		t.Errorf("new bytes %q", body)
	}
}

func TestSymlinks(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	write(t, outside, "secret")
	for name, c := range map[string]struct{ target, complaint string }{
		"a file beside":       {"config.json", ""},
		"a file of another":   {"../../other/config/model.safetensors", ""},
		"out, relative":       {"../../../secret", "org/tiny/link: the symlink leads nowhere or out of the folder"},
		"out, absolute":       {outside, "org/tiny/link: the symlink leads nowhere or out of the folder"},
		"nowhere":             {"none", "org/tiny/link: the symlink leads nowhere or out of the folder"},
		"itself":              {"link", "org/tiny/link: the symlink leads nowhere or out of the folder"},
		"a directory":         {"sub", "org/tiny/link is a symlink to a directory"},
		"up, a directory too": {"..", "org/tiny/link is a symlink to a directory"},
	} {
		root := folder(t, onDisk())
		if err := os.Symlink(c.target, filepath.Join(root, "org/tiny/link")); err != nil {
			t.Fatal(err)
		}
		r, err := newDir(t, root).Find(t.Context(), "org/tiny")
		switch {
		case c.complaint == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.complaint == "":
			body, err := r.Open("link")
			if err != nil {
				t.Fatal(err)
			}
			body.(io.Closer).Close()
		case err == nil || !strings.HasPrefix(err.Error(), c.complaint) || errors.Is(err, fs.ErrNotExist):
			t.Errorf("%s: error %v, want %s", name, err, c.complaint)
		}
	}
	root := folder(t, onDisk())
	if err := os.Symlink("tiny", filepath.Join(root, "org/alias")); err != nil {
		t.Fatal(err)
	}
	if _, err := newDir(t, root).Find(t.Context(), "org/alias"); err == nil || !strings.Contains(err.Error(), "only symlinks to files") {
		t.Errorf("a repository that is a symlink: %v", err)
	}
}

func TestWhatNoModelCanHave(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"backslash":    func(dir string) error { return os.WriteFile(filepath.Join(dir, `a\b`), nil, 0o600) },
		"line feed":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "a\nb"), nil, 0o600) },
		"other cases":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "CONFIG.json"), nil, 0o600) },
		"named pipe":   func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600) },
		"our own name": func(dir string) error { return os.MkdirAll(filepath.Join(dir, ".headstart/x"), 0o700) },
	} {
		root := folder(t, onDisk())
		if err := spoil(filepath.Join(root, "org/tiny")); err != nil {
			t.Fatal(err)
		}
		if name == "our own name" {
			write(t, filepath.Join(root, "org/tiny/.headstart/x/y"), "")
		}
		_, err := newDir(t, root).Find(t.Context(), "org/tiny")
		if err == nil || errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, manifest.ErrInvalid) == (name == "named pipe") {
			t.Errorf("%s: %v is of the wrong class", name, err)
		}
		s := serve(t, hub.Config{Find: newDir(t, root)})
		s.get("/api/models/org/tiny").expect(t, 500)
		s.get("/api/models/other/config").expect(t, 200) // its neighbour is none the worse
	}
}

func TestFoldersThatAreNot(t *testing.T) {
	root := folder(t, onDisk())
	d := newDir(t, root)
	for _, name := range []string{"org/none", "none/none", "org", "org/file", "../org/tiny", "org/..", "org/tiny/sub", "/org/tiny", "org/-bad", ""} {
		if _, err := d.Find(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v, want %v", name, err, fs.ErrNotExist)
		}
	}
	if _, err := hub.NewDir(filepath.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := hub.NewDir(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder of nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Find(ctx, "org/tiny"); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has left: %v", err)
	}
	r := find(t, root, "org/tiny")
	if _, err := r.Open("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Find(t.Context(), "org/tiny"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of everything is gone: %v, which must not look like one missing model", err)
	}
}

func TestManyAskAtOnce(t *testing.T) {
	d := newDir(t, folder(t, onDisk()))
	commits := make(chan string)
	const n = 8
	for range n {
		go func() {
			r, err := d.Find(t.Context(), "org/tiny")
			if err != nil {
				commits <- err.Error()
				return
			}
			commits <- r.Commit()
		}()
	}
	first := <-commits
	for range n - 1 {
		if got := <-commits; got != first || len(got) != 40 {
			t.Errorf("commit %s, want %s", got, first)
		}
	}
}
