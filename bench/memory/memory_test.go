package memory

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestFree(t *testing.T) {
	dir := t.TempDir()
	put := func(name, s string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := cgroupFree(dir); n != 1<<63-1 {
		t.Errorf("without a cgroup: %d", n)
	}
	put("memory.max", "max\n")
	put("memory.current", "1000\n")
	if n := cgroupFree(dir); n != 1<<63-1 {
		t.Errorf("without a limit: %d", n)
	}
	put("memory.max", "5000\n")
	if n := cgroupFree(dir); n != 4000 {
		t.Errorf("%d of 4000", n)
	}
	put("meminfo", "MemTotal:       100 kB\nMemAvailable:    24 kB\n")
	if n := available(filepath.Join(dir, "meminfo")); n != 24<<10 {
		t.Errorf("%d available", n)
	}
	put("meminfo", "MemAvailable: x kB\n")
	if n := available(filepath.Join(dir, "meminfo")); n != 0 {
		t.Errorf("%d available of what is not understood", n)
	}
}

func TestTouch(t *testing.T) {
	dir := t.TempDir()
	r, err := Touch(t.Context(), dir, 9<<20+1)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(r.path); err != nil || st.Size() != 9<<20+1 {
		t.Errorf("%v, %v", st, err)
	}
	if err := r.Release(); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Touch(ended, dir, 1); err == nil {
		t.Error("it goes on after its context has ended")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
