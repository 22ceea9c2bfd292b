package fetch_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

// write puts a model's files into a directory.
func write(t *testing.T, m *fetchtest.Model) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range m.Manifest.Files {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, m.Content(f.Path), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestVerify(t *testing.T) {
	m := fetchtest.NewModel(t, "org/verify", sizes())
	dir := write(t, m)
	var n atomic.Int64
	if err := fetch.Verify(t.Context(), dir, m.Manifest, func(b int64) { n.Add(b) }); err != nil || n.Load() != m.Manifest.Size() {
		t.Errorf("%d bytes, %v", n.Load(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fetch.Verify(ctx, dir, m.Manifest, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	path := filepath.Join(dir, "a/2n")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^m.Content("a/2n")[chunk]}, chunk); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "a/n"), 5); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "empty")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, "empty")); err != nil {
		t.Fatal(err)
	}
	err = fetch.Verify(t.Context(), dir, m.Manifest, nil)
	var mismatch *manifest.MismatchError
	if !errors.As(err, &mismatch) || mismatch.Path != "a/2n" || mismatch.Offset != chunk || mismatch.Sum != "crc32c" {
		t.Errorf("%v", err)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], "a/n:") || !strings.HasPrefix(lines[2], "config.json:") {
		t.Errorf("%q", lines)
	}
}

// A sum of chunks that agrees does not excuse a sha256 that does not.
func TestVerifySHA256(t *testing.T) {
	m := fetchtest.NewModel(t, "org/verify", map[string]int{"w": chunk + 1})
	m.Manifest.Files[0].SHA256[0] ^= 1
	err := fetch.Verify(t.Context(), write(t, m), m.Manifest, nil)
	var mismatch *manifest.MismatchError
	if !errors.As(err, &mismatch) || mismatch.Sum != "sha256" {
		t.Errorf("%v", err)
	}
}
