package usage

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func TestParseTimes(t *testing.T) {
	const line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 200 0 0 250 50 30 20 20 0 9 0 1 2 3"
	for n, want := range map[int]float64{2: 3, 4: 3.5} {
		if got, err := parseTimes(line, n); err != nil || got != want {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 100 200 0 0 x 50 0 0 20"} {
		if _, err := parseTimes(bad, 2); err == nil {
			t.Errorf("%q is understood", bad)
		}
	}
}

// TestTree has a shell whose children take processor time and memory, one ended and one alive.
func TestTree(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; sleep 100 & echo ready; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	w := Looking(cmd.Process.Pid)
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	all, err := TreeCPU(cmd.Process.Pid)
	alone, err2 := CPU(cmd.Process.Pid)
	if err != nil || err2 != nil || all < alone+0.02 {
		t.Errorf("the shell took %v s, with its children %v s: %v, %v", alone, all, err, err2)
	}
	w.End()
	if w.Memory < 100<<10 || w.Memory > 1<<30 {
		t.Errorf("it held %d bytes", w.Memory)
	}
	if _, err := TreeCPU(1 << 30); err == nil {
		t.Error("a process that is not there has a time")
	}
}

// TestPeakMemory compares a tree of two processes with what each of them says of itself.
func TestPeakMemory(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 100 & echo ready; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	alone, both := HighWater(cmd.Process.Pid), PeakMemory(cmd.Process.Pid)
	if alone < 100<<10 || both < alone+100<<10 || both > 1<<30 {
		t.Errorf("the shell peaks at %d bytes, it and its child at %d", alone, both)
	}
	if got := PeakMemory(1 << 30); got != 0 {
		t.Errorf("a process that is not there has %d bytes", got)
	}
}

func TestDiskUsed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "a"), 1<<40); err != nil { // a hole takes nothing
		t.Fatal(err)
	}
	if got := DiskUsed(dir); got < 2<<20 || got > 3<<20 {
		t.Errorf("%d bytes", got)
	}
	if got := DiskUsed(filepath.Join(dir, "none")); got != 0 {
		t.Errorf("%d bytes of nothing", got)
	}
}
