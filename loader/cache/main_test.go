package cache_test

import (
	"bytes"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

func TestMain(m *testing.M) { mounttest.Main(m) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

const chunk = fetchtest.ChunkSize

func sizes() map[string]int {
	return map[string]int{
		"config.json": 1, "empty": 0, "a/n-1": chunk - 1, "a/n": chunk, "a/n+1": chunk + 1, "a/b/2n": 2 * chunk,
	}
}

func open(t *testing.T, dir string) *cache.Cache {
	t.Helper()
	c, err := cache.Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closing(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func entry(t *testing.T, c *cache.Cache, m *fetchtest.Model) *cache.Entry {
	t.Helper()
	e, err := c.Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// fill receives the chunks that want reports and the entry lacks, rechecking suspect ones, and returns
// how many it received and how many it rechecked.
func fill(t *testing.T, e *cache.Entry, m *fetchtest.Model, want func(file, chunk int) bool) (received, rechecked int) {
	t.Helper()
	for i, f := range m.Manifest.Files {
		for c := range m.Manifest.ChunksOf(i) {
			if e.Have(i, c.Index) || want != nil && !want(i, c.Index) {
				continue
			}
			if e.Suspect(i, c.Index) {
				ok, err := e.Recheck(i, c.Index, make([]byte, 1000))
				if err != nil {
					t.Fatal(err)
				}
				if ok {
					rechecked++
					continue
				}
			}
			p, err := e.Chunk(i, c.Index)
			if err != nil {
				t.Fatal(err)
			}
			if n := copy(p, m.Content(f.Path)[c.Offset:]); int64(n) != c.Size || len(p) != n {
				t.Fatalf("%s %d: %d bytes of %d", f.Path, c.Index, n, c.Size)
			}
			if err := e.Commit(i, c.Index); err != nil {
				t.Fatal(err)
			}
			received++
		}
	}
	return received, rechecked
}

// checkFiles compares an entry's files with the model's.
func checkFiles(t *testing.T, e *cache.Entry, m *fetchtest.Model) {
	t.Helper()
	for i, f := range m.Manifest.Files {
		got, err := os.ReadFile(e.Path(i))
		if err != nil || !bytes.Equal(got, m.Content(f.Path)) {
			t.Errorf("%s: %d bytes that are not the model's, %v", f.Path, len(got), err)
		}
		if want := filepath.Join(e.Dir(), f.Path); e.Path(i) != want {
			t.Errorf("%s is at %s, want %s", f.Path, e.Path(i), want)
		}
	}
}

// tree returns the paths below dir, without those below skip.
func tree(t *testing.T, dir string, skip ...string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if slices.Contains(skip, rel) {
			return fs.SkipDir
		}
		if rel != "." {
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// mount mounts a tmpfs with these options and returns its directory.
func mount(t *testing.T, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("headstart-test", dir, "tmpfs", 0, options); err != nil {
		t.Skip("this environment does not mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func oneLine(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, p := range append(parts, "") {
		if !strings.Contains(err.Error(), p) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q, want one line with %q", err, p)
		}
	}
}
