package demo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/place"
)

// built is the folder of the binary, once there is one.
var built string

// binary builds headstart once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "headstart-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "headstart")
	built = dir
	out, err := exec.Command("go", "build", "-o", path, "github.com/headstart-serving/headstart/cmd/headstart").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// run is one demo process, with a TMPDIR of its own.
type run struct {
	cmd    *exec.Cmd
	tmp    string
	lines  *bufio.Scanner // of stderr
	stderr io.Closer
	stdout bytes.Buffer
}

func start(t *testing.T, args ...string) *run {
	t.Helper()
	if testing.Short() {
		t.Skip("it moves 575 MB")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{tmp: t.TempDir()}
	r.cmd = exec.Command(path, append([]string{"demo"}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.tmp, "DEMO_TEST="+r.tmp)
	r.cmd.Stdout = &r.stdout
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.lines, r.stderr = bufio.NewScanner(stderr), stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// until reads stderr up to the line that has text.
func (r *run) until(t *testing.T, text string) {
	t.Helper()
	var said []string
	for r.lines.Scan() {
		if said = append(said, r.lines.Text()); strings.Contains(r.lines.Text(), text) {
			return
		}
	}
	t.Errorf("it never said %q, but\n%s", text, strings.Join(said, "\n"))
}

// end waits and returns the exit code.
func (r *run) end() (int, string) {
	var rest strings.Builder
	for r.lines.Scan() {
		fmt.Fprintln(&rest, r.lines.Text())
	}
	_ = r.cmd.Wait()
	return r.cmd.ProcessState.ExitCode(), rest.String()
}

// nothingLeft fails the test for each file, mount and process of the demo's.
func (r *run) nothingLeft(t *testing.T) {
	t.Helper()
	if left := names(t, r.tmp); len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), r.tmp) {
		t.Errorf("mounts are left:\n%s", table)
	}
	for _, pid := range r.processes(t) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		t.Errorf("process %s is left: %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
	}
}

// processes returns the demo's, by the variable that they all have.
func (r *run) processes(t *testing.T) []string {
	t.Helper()
	var pids []string
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err == nil && bytes.Contains(env, []byte("DEMO_TEST="+r.tmp+"\x00")) {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// ended waits until each of the demo's processes has ended: the node's log is a file, so that the end
// of the demo's stderr says nothing of the node.
func (r *run) ended(t *testing.T) {
	t.Helper()
	for _, pid := range r.processes(t) {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(n, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			_, err = unix.Poll(fds, int((child.Stopping + 10*time.Second).Milliseconds()))
		}
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func needNode(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Geteuid() != 0 {
		t.Skip("the node's road needs root and /dev/fuse")
	}
	f.Close()
}

func (r *run) result(t *testing.T) Result {
	t.Helper()
	var x Result
	if err := json.Unmarshal(r.stdout.Bytes(), &x); err != nil {
		t.Fatalf("stdout is not one JSON object: %v\n%s", err, r.stdout.Bytes())
	}
	return x
}

func TestNodeRoad(t *testing.T) {
	needNode(t)
	r := start(t, "--json", "--head-start", "10ms")
	// Nobody reads what it says any more: that must not end it.
	r.until(t, "headstart stage")
	r.stderr.Close()
	code, _ := r.end()
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	x := r.result(t)
	if !x.Verified || x.Road != Node || x.Bytes < 500e6 || len(x.Readers) != 2 || !x.Readers[0].Verified || !x.Readers[1].Verified {
		t.Errorf("%+v", x)
	}
	if x.Stage <= 0 || x.Load <= 0 || x.Cold <= 0 || x.Warm <= 0 || x.Stall < 0 || x.ColdRate <= 0 || x.WarmRate <= 0 {
		t.Errorf("times: %+v", x)
	}
	r.nothingLeft(t)
}

func TestFetchRoad(t *testing.T) {
	r := start(t, "--json", "--head-start", "0s", "--road", "fetch", "--compare")
	code, said := r.end()
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	x := r.result(t)
	if !x.Verified || x.Road != Fetch || x.Stall < x.Load || x.Curl == nil || x.Curl.Rate <= 0 {
		t.Errorf("%+v", x)
	}
	r.nothingLeft(t)
}

// TestInterrupted ends it at each of its steps, and twice, for people press Ctrl-C again.
func TestInterrupted(t *testing.T) {
	needNode(t)
	for _, at := range []struct {
		line string
		with os.Signal
		code int
	}{
		{"a synthetic", os.Interrupt, 130},
		{"headstart stage", syscall.SIGHUP, 1},
		{"touching", os.Interrupt, 130},
		{"headstart node", syscall.SIGTERM, 130},
		{"headstart publish", os.Interrupt, 130},
		{"headstart wait", os.Interrupt, 130},
		{"/second --expect", os.Interrupt, 130},
	} {
		t.Run(strings.Trim(strings.ReplaceAll(at.line, " ", "_"), "/"), func(t *testing.T) {
			r := start(t, "--head-start", "100ms")
			r.until(t, at.line)
			began := time.Now()
			for range 2 {
				if err := r.cmd.Process.Signal(at.with); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
			}
			code, said := r.end()
			if code != at.code {
				t.Errorf("exit code %d, it said\n%s", code, said)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %v to end", took)
			}
			r.nothingLeft(t)
		})
	}
}

// TestKilled: after SIGKILL the processes end by themselves, and the next demo removes the rest.
func TestKilled(t *testing.T) {
	needNode(t)
	r := start(t)
	r.until(t, "headstart wait")
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.end()
	r.ended(t)
	if len(names(t, r.tmp)) == 0 {
		t.Error("nothing is left of a killed demo: this test tests nothing")
	}
	place.Sweep(r.tmp, prefix)
	r.nothingLeft(t)
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--model", "gemma-3-2b"}, {"--road", "rail"}, {"more"}, {"--vllm", "none"}} {
		r := start(t, args...)
		if code, said := r.end(); code != 2 {
			t.Errorf("%v: exit code %d: %s", args, code, said)
		}
		r.nothingLeft(t)
	}
}
