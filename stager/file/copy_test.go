package file

import (
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// TestCopyIsAFileOfItsOwn copies with a file system that clones and with one that does not. Who changes the
// one file in place leaves the other as it is.
func TestCopyIsAFileOfItsOwn(t *testing.T) {
	data := []byte("the bytes of a shard")
	sum := crc32.Checksum(data, manifest.Castagnoli)
	for name, clone := range map[string]func(to, from int) error{
		"clone": func(to, from int) error { // what FICLONE does
			_, err := syscall.Pwrite(to, data, 0)
			return err
		},
		"no clone": func(int, int) error { return syscall.EOPNOTSUPP },
	} {
		dir := t.TempDir()
		s := open(t, dir)
		s.clone = clone
		if err := s.Put(t.Context(), "a/from", 0, data); err != nil {
			t.Fatal(err)
		}
		if err := s.Copy(t.Context(), "a/from", "b/key", int64(len(data)), sum); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a/from"), []byte("!"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "b/key")); err != nil || string(got) != string(data) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestCopyOfDamage leaves bytes that a clone brought wrong without a name, and nothing behind.
func TestCopyOfDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.clone = func(to, _ int) error { _, err := syscall.Pwrite(to, []byte("xyz"), 0); return err }
	if err := s.Put(t.Context(), "a/from", 0, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	var wrong *manifest.MismatchError
	if err := s.Copy(t.Context(), "a/from", "b/key", 3, crc32.Checksum([]byte("abc"), manifest.Castagnoli)); !errors.As(err, &wrong) {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"b", ".headstart"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

// TestRemoveInUse leaves what an upload is at work with, and removes it when the upload's process is gone.
func TestRemoveInUse(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	parts := manifest.Private + "parts/org/name/c/"
	u, err := s.Upload(t.Context(), "org/name/c/w", parts+"f/", 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Write(t.Context(), stager.Part{Size: 4, CRC32C: crc32.Checksum([]byte("abcd"), manifest.Castagnoli), Note: []byte("n")}, [][]byte{[]byte("abcd")}); err != nil {
		t.Fatal(err)
	}
	all := func() (objects []stager.Object) {
		for o, err := range other.List(t.Context(), parts) {
			if err != nil {
				t.Fatal(err)
			}
			objects = append(objects, o)
		}
		return objects
	}
	if len(all()) != 2 {
		t.Fatalf("%+v", all())
	}
	for _, o := range all() {
		if err := other.Remove(t.Context(), o); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%s: %v", o.Key, err)
		}
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range all() {
		if err := other.Remove(t.Context(), o); err != nil {
			t.Errorf("%s: %v", o.Key, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, ".headstart")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directories are left: %v", err)
	}
}
