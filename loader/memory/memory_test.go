package memory

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const gib = 1 << 30

// machineOf makes /proc and /sys/fs/cgroup from what is in their files.
func machineOf(t *testing.T, files map[string]string) (proc, cgroups string) {
	t.Helper()
	dir := t.TempDir()
	if files["proc/meminfo"] == "" {
		files["proc/meminfo"] = "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   41943040 kB\n"
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "proc"), filepath.Join(dir, "cgroup")
}

func TestRead(t *testing.T) {
	machineSpare := int64(64 * gib / 20)
	for name, c := range map[string]struct {
		files map[string]string
		total int64
		free  int64
		bound string // how Bound ends
	}{
		"no cgroup": {map[string]string{}, 64 * gib, 40*gib - machineSpare, "the machine"},
		"no limit": {map[string]string{
			"proc/self/cgroup": "0::/kubepods/pod1\n", "cgroup/kubepods/pod1/memory.max": "max\n", "cgroup/kubepods/pod1/memory.high": "max\n",
			"cgroup/kubepods/pod1/memory.current": "1\n",
		}, 64 * gib, 40*gib - machineSpare, "the machine"},
		"a pod's limit, above the container's cgroup": {map[string]string{
			"proc/self/cgroup": "0::/kubepods/pod1/c\n", "cgroup/kubepods/pod1/c/memory.max": "max\n", "cgroup/kubepods/pod1/memory.max": "17179869184\n",
			"cgroup/kubepods/pod1/memory.current": "8589934592\n", "cgroup/kubepods/pod1/memory.stat": "anon 1\nfile 9\ninactive_file 1073741824\nactive_file 1073741824\n",
		}, 16 * gib, 10*gib - cgroupSpare, "/kubepods/pod1"},
		"high is lower than max": {map[string]string{
			"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "17179869184\n", "cgroup/memory.high": "8589934592\n", "cgroup/memory.current": "0\n",
		}, 8 * gib, 8*gib - cgroupSpare, "/cgroup"},
		"a container that sees the host's path and its own files": {map[string]string{
			"proc/self/cgroup": "0::/kubepods/pod1/c\n", "cgroup/memory.max": "4294967296\n", "cgroup/memory.current": "1073741824\n",
		}, 4 * gib, 3*gib - cgroupSpare, "/cgroup"},
		"used up": {map[string]string{
			"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "1073741824\n", "cgroup/memory.current": "1073741824\n",
		}, gib, 0, "/cgroup"},
		"version 1": {map[string]string{
			"proc/self/cgroup": "4:memory:/a\n3:cpuset:/\n1:name=systemd:/\n0::/\n", "cgroup/memory/a/memory.limit_in_bytes": "8589934592\n",
			"cgroup/memory/a/memory.usage_in_bytes": "4294967296\n", "cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2147483648\n",
			"cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "cgroup/memory/memory.usage_in_bytes": "1\n",
		}, 8 * gib, 6*gib - cgroupSpare, "/memory/a"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := read(machineOf(t, c.files))
			if err != nil || a.Total != c.total || a.Free != c.free || !strings.HasSuffix(a.Bound, c.bound) {
				t.Errorf("%+v, %v; want %d of %d by …%s", a, err, c.free, c.total, c.bound)
			}
		})
	}
}

// What is not understood is an error: no limit would be a guess.
func TestNotUnderstood(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"meminfo": {"proc/meminfo": "MemTotal: 5 kB\n"},
		"limit":   {"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "4 GiB\n"},
		"used":    {"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "4\n", "cgroup/memory.current": "-1\n"},
	} {
		if a, err := read(machineOf(t, files)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// The account of the machine that the test runs on.
func TestReadHere(t *testing.T) {
	a, err := Read()
	if err != nil || a.Total <= 0 || a.Total == math.MaxInt64 || a.Free < 0 || a.Free > a.Total || a.Bound == "" {
		t.Errorf("%+v, %v", a, err)
	}
}
