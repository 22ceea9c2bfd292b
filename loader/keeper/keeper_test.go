package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/keeper"
)

// The test binary is the parent and the worker too, by these variables.
const (
	asParent = "KEEPER_TEST_PARENT"
	asWorker = "KEEPER_TEST_WORKER"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asWorker) != "":
		work(os.Getenv(asWorker))
	case os.Getenv(asParent) != "":
		parent(os.Getenv(asParent))
	default:
		goleak.VerifyTestMain(m)
	}
}

// parent keeps a worker that does what is said of it.
func parent(what string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	cfg := keeper.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Limit: 3, Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), asWorker+"="+what)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd
	}}
	code, err := keeper.New(cfg).Run(ctx)
	if err != nil {
		fmt.Println(err)
		code = 99
	}
	os.Exit(code)
}

func must(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(98)
	}
}

func die() { must(syscall.Kill(os.Getpid(), syscall.SIGKILL)) }

// work is a worker's life. A number is an exit code.
func work(what string) {
	p, err := keeper.Join(keeper.FD)
	must(err)
	var code int
	if n, _ := fmt.Sscanf(what, "exit %d", &code); n == 1 {
		os.Exit(code)
	}
	switch what {
	case "die":
		die()
	case "remember":
		remember(p)
	case "wait":
		got := make(chan os.Signal, 2)
		signal.Notify(got, syscall.SIGTERM)
		fmt.Println("waits")
		<-got
		select {
		case <-got: // it is told once
			os.Exit(97)
		case <-time.After(50 * time.Millisecond):
		}
		os.Exit(130)
	case "hang":
		fmt.Println("hangs")
		select {}
	case "orphan":
		orphan()
	case "late failure":
		if p.Restarts == 0 {
			must(p.Ready())
			die()
		}
		if p.Restarts == 1 {
			os.Exit(1) // what it needs is not there yet
		}
		fmt.Println(p.Restarts, p.Cause)
	}
	os.Exit(0)
}

// remember lives three times: it is killed, it panics, and it says what it was given.
func remember(p *keeper.Parent) {
	switch p.Restarts {
	case 0:
		for _, id := range []string{"gone", "a", "b"} {
			r, w, err := os.Pipe()
			must(err)
			_, err = io.WriteString(w, "through "+id)
			must(errors.Join(err, w.Close(), p.Keep(id, []byte("record "+id), int(r.Fd()))))
		}
		must(errors.Join(p.Note("a", []byte("1")), p.Note("a", []byte("2")), p.Note("gone", []byte("x")), p.Note("never", []byte("y")), p.Drop("gone"), p.Drop("never")))
		must(p.Ready())
		die()
	case 1:
		must(errors.Join(p.Note("b", []byte("3")), p.Ready()))
		panic("on purpose")
	}
	must(p.Ready())
	for _, k := range p.Kept {
		data, err := io.ReadAll(os.NewFile(uintptr(k.FD), "kept"))
		must(err)
		fmt.Printf("%s %q %q %q\n", k.ID, k.Record, k.Notes, data)
	}
	fmt.Println(p.Restarts, p.Cause)
	os.Exit(5)
}

// orphan leaves a grandchild, and waits until somebody has reaped it.
func orphan() {
	out, err := exec.Command("sh", "-c", "sleep 0.01 & echo $!").Output()
	must(err)
	var pid int
	_, err = fmt.Sscan(string(out), &pid)
	must(err)
	for !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("reaped")
}

type running struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func command(t *testing.T, what string) *running {
	t.Helper()
	r := &running{cmd: exec.Command("/proc/self/exe")}
	r.cmd.Env = append(os.Environ(), asParent+"="+what)
	r.cmd.Stdout = &r.out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return r
}

// ends runs a parent to its end.
func (r *running) ends(t *testing.T) (code int, out string) {
	t.Helper()
	if err := r.cmd.Run(); err != nil && r.cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return r.cmd.ProcessState.ExitCode(), r.out.String()
}

func TestRemembered(t *testing.T) {
	code, out := command(t, "remember").ends(t)
	want := "a \"record a\" [\"1\" \"2\"] \"through a\"\nb \"record b\" [\"3\"] \"through b\"\n2 exit code 2\n"
	if code != 5 || out != want {
		t.Errorf("exit code %d, it says %q, want %q", code, out, want)
	}
}

// TestExitCodes: an exit code is passed on, also 2, which a panic has too, of a worker that never worked.
func TestExitCodes(t *testing.T) {
	for _, want := range []int{0, 1, 2, 7} {
		if code, out := command(t, fmt.Sprintf("exit %d", want)).ends(t); code != want || out != "" {
			t.Errorf("exit code %d, want %d: %q", code, want, out)
		}
	}
}

// TestLateFailure: a restart that fails is tried again, for readers wait for it.
func TestLateFailure(t *testing.T) {
	if code, out := command(t, "late failure").ends(t); code != 0 || out != "2 exit code 1\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
}

func TestGivesUp(t *testing.T) {
	code, out := command(t, "die").ends(t)
	if code != 99 || !strings.Contains(out, "died 4 times") || !strings.Contains(out, "signal killed") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit code %d: %q", code, out)
	}
}

// started starts a parent and waits for its worker to say something.
func (r *running) started(t *testing.T) io.Reader {
	t.Helper()
	r.cmd.Stdout = nil
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestToldToStop(t *testing.T) {
	r := command(t, "wait")
	r.started(t)
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.cmd.Wait()
	if code := r.cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
}

// TestParentKilled: the worker's end closes its standard output.
func TestParentKilled(t *testing.T) {
	r := command(t, "hang")
	out := r.started(t)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
	r.cmd.Wait()
}

// TestProcessOne: in a container of its own the parent has to reap what others leave.
func TestProcessOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a process namespace needs root")
	}
	r := command(t, "orphan")
	r.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	if code, out := r.ends(t); code != 0 || out != "reaped\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
}

// TestJoinRefuses has something else at the descriptor than a parent.
func TestJoinRefuses(t *testing.T) {
	for _, said := range [][]string{
		nil,
		{`{`},
		{`{"op":"hello","data":"AA=="}`},
		{`{"op":"keep","id":"a"}`, `{"op":"end"}`}, // without its descriptor
		{`{"op":"note","id":"a"}`, `{"op":"end"}`},
		{`{"op":"dance"}`},
		{strings.Repeat(" ", 70<<10)},
	} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range said {
			if err := unix.Send(pair[0], []byte(s), 0); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(pair[0])
		before := descriptors(t)
		if p, err := keeper.Join(pair[1]); err == nil {
			t.Errorf("%.40q: %+v", said, p)
		}
		if after := descriptors(t); len(after) != len(before)-1 {
			t.Errorf("%.40q: descriptors %v, before %v", said, after, before)
		}
	}
	if _, err := keeper.Join(9999); err == nil {
		t.Error("joined a descriptor that is not open")
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(func(yield func(string) bool) {
		for _, e := range entries {
			if !yield(e.Name()) {
				return
			}
		}
	})
}
