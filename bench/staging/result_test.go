package staging

import (
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/manifest"
)

func TestSpread(t *testing.T) {
	for _, x := range []struct {
		all  []float64
		want Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{4, 1}, Spread{2.5, 1, 4}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{9, 1, 2, 4}, Spread{3, 1, 9}},
	} {
		if got := spread(x.all); got != x.want {
			t.Errorf("%v: %+v, want %+v", x.all, got, x.want)
		}
	}
}

func TestJoined(t *testing.T) {
	sum := func(s string) uint32 { return crc32.Checksum([]byte(s), manifest.Castagnoli) }
	all := []stored{
		{"bare/a/10", 3, sum("abc")}, {"bare/a/0", 10, sum("0123456789")}, {"bare/ab", 1, sum("x")}, {"bare/a/13", 0, 0},
		{"bare/gap/0", 1, 0}, {"bare/gap/2", 1, 0}, {"bare/odd/0", 1, 0}, {"bare/odd/x", 1, 0},
	}
	for name, want := range map[string]string{"bare/a": "0123456789abc", "bare/ab": "x", "bare/none": ""} {
		size, crc, err := joined(all, name)
		if err != nil || size != int64(len(want)) || crc != sum(want) {
			t.Errorf("%s: %d bytes, %08x, %v", name, size, crc, err)
		}
	}
	for _, name := range []string{"bare/gap", "bare/odd"} {
		if _, _, err := joined(all, name); err == nil {
			t.Errorf("%s is whole", name)
		}
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("7 (a) b) (c) S 1 7 7 0 -1 4194560 100 200 0 0 250 50 0 0 20 0 9 0 1 2 3")
	if err != nil || got != 3 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 100 200 0 0 x 50 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q is understood", bad)
		}
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
	alone, both := highWater(cmd.Process.Pid), peakMemory(cmd.Process.Pid)
	if alone < 100<<10 || both < alone+100<<10 || both > 1<<30 {
		t.Errorf("the shell peaks at %d bytes, it and its child at %d", alone, both)
	}
	if got := peakMemory(1 << 30); got != 0 {
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
	if got := diskUsed(dir); got < 2<<20 || got > 3<<20 {
		t.Errorf("%d bytes", got)
	}
	if got := diskUsed(filepath.Join(dir, "none")); got != 0 {
		t.Errorf("%d bytes of nothing", got)
	}
}

func TestTable(t *testing.T) {
	r := Result{Model: "acme/small", Files: 2, Bytes: 5e9, Machine: "2 processors", Scenarios: []Scenario{
		{
			Name: "near", Title: "loopback", Rounds: 2,
			Ways: []Way{
				{Name: stageName, Checks: "yes", Runs: []Sample{{Rate: 400e6, CPU: 1, Servers: 0.5, Memory: 300 << 20}, {Rate: 600e6, CPU: 1.2, Servers: 0.5, Memory: 400 << 20}}},
				{Name: bareName, Checks: "no", Runs: []Sample{{Rate: 500e6, CPU: 1.01, Servers: 0.5, Memory: 1 << 20}, {Rate: 500e6, CPU: 1.01, Servers: 0.5, Memory: 1 << 20}}},
			},
		},
		{
			Name: "narrow", Title: "a link", Rounds: 1, Link: &link.Shape{Total: 250e6},
			Ways: []Way{{Name: stageName, Checks: "yes", Runs: []Sample{{Rate: 240e6, CPU: 1, Memory: 600 << 20, Disk: 5e9}}}},
		},
	}}
	for i, goals := range []func(*Scenario) []Goal{nearGoals, narrowGoals} {
		s := &r.Scenarios[i]
		for j := range s.Ways {
			s.Ways[j].sum()
		}
		s.Goals = goals(s)
	}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("it writes\n%s\nwant\n%s", &out, want)
	}
}
