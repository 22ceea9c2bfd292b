package file_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, dir string, objects map[string][]byte) {
	t.Helper()
	for key, b := range objects {
		path := filepath.Join(dir, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, dir string) *file.Source {
	t.Helper()
	src, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

func TestConformance(t *testing.T) {
	fetchtest.Conformance(t, func(t *testing.T, objects map[string][]byte) fetch.Source {
		dir := t.TempDir()
		write(t, dir, objects)
		return open(t, dir)
	})
}

func TestNoDirectory(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(dir, "none"), plain} {
		if _, err := file.New(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "bucket file://"+dir) {
			t.Errorf("%v", err)
		}
	}
}

// Nothing outside the directory is an object, and nothing but a file is.
func TestOutside(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"secret": []byte("s"), "bucket/a/b": []byte("b")})
	bucket := filepath.Join(dir, "bucket")
	if err := os.Symlink("../secret", filepath.Join(bucket, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(bucket, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	src := open(t, bucket)
	for _, key := range []string{"../secret", "/etc/passwd", "link", "pipe", "a/../../secret", "a", "", "a\x00b", strings.Repeat("x", 5000)} {
		if b, err := src.Get(t.Context(), key, 100); err == nil {
			t.Errorf("%.20q: %q", key, b)
		}
		if _, err := src.Open(t.Context(), key, 0, 1); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.20q can be opened: %v", key, err)
		}
	}
	var keys []string
	for obj, err := range src.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, obj.Key)
	}
	if len(keys) != 1 || keys[0] != "a/b" {
		t.Errorf("%q", keys)
	}
}
