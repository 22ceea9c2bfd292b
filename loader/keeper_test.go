package loader_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/keeper"
)

// runKeeper is a node as people run it: a parent and its worker.
func runKeeper(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k := keeper.New(keeper.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Steady: time.Millisecond, Command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "LOADER_TEST_NODE="+dir, "LOADER_TEST_KEEPER=", "LOADER_TEST_KEPT=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd
	}})
	code, err := k.Run(ctx)
	if err == nil && code != 0 {
		os.Exit(code)
	}
	return err
}

// suicidal is a log at which its process kills itself: when it says what stands in a file, which goes.
type suicidal struct {
	slog.Handler
	path string
}

func (s suicidal) Handle(ctx context.Context, r slog.Record) error {
	err := s.Handler.Handle(ctx, r)
	if at, miss := os.ReadFile(s.path); miss == nil && strings.Contains(r.Message, string(at)) {
		os.Remove(s.path)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return err
}

// kept is a node whose worker the test can kill.
type kept struct {
	*process
	workers chan int // their process ids as they begin to work
	worker  int      // the last of them
}

func startKept(t *testing.T, dir string) *kept {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LOADER_TEST_KEEPER="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	said, saidErr := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err := errors.Join(err, saidErr); err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k := &kept{process: &process{control.Dial(filepath.Join(dir, "socket")), cmd}, workers: make(chan int, 100)}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(k.workers)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var pid int
			if _, err := fmt.Sscanf(lines.Text(), "ready %d", &pid); err == nil {
				k.workers <- pid
			}
		}
	})
	t.Cleanup(func() {
		k.kill()
		reading.Wait()
		for _, p := range mounts(t, filepath.Join(dir, "cache")) {
			unix.Unmount(p.Target, unix.MNT_DETACH)
		}
		if t.Failed() {
			data, _ := os.ReadFile(said.Name())
			t.Logf("%s", data)
		}
		said.Close()
	})
	k.next(t)
	return k
}

// next waits for the next worker.
func (k *kept) next(t *testing.T) {
	t.Helper()
	pid, ok := <-k.workers
	if !ok {
		t.Fatal("the node has ended")
	}
	k.worker = pid
	k.Client.Close()
}

// killWorker is kill -9 of the worker.
func (k *kept) killWorker(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(k.worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// runReader reads all files of a model in one of several ways, and compares them with the originals:
// args are the model's folder and theirs. It says what went wrong, a line each, and at the end how many
// reads were right.
func runReader(mode string) error {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	at, original := os.Args[1], os.Args[2]
	fmt.Println("ready")
	var paths []string
	err := filepath.WalkDir(original, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if mode == "fault" || mode == "reopen" { // not all wait for the same page
		slices.Reverse(paths)
	}
	right := 0
	for pass := range map[string]int{"reopen": 2}[mode] + 1 {
		for _, path := range paths {
			want, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(original, path)
			right += readFile(mode, filepath.Join(at, rel), want, pass)
		}
	}
	fmt.Println("right", right)
	return nil
}

// readFile reads one file piece by piece and returns how many pieces were right.
func readFile(mode, path string, want []byte, pass int) (right int) {
	f, err := os.Open(path)
	if err != nil {
		fmt.Println("failed", "open", kind(err))
		return 0
	}
	defer f.Close()
	var data []byte
	if mode == "map" || mode == "fault" {
		if len(want) == 0 {
			return 0
		}
		if data, err = unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			fmt.Println("failed", "mmap", kind(err))
			return 0
		}
		if mode == "fault" {
			unix.Madvise(data, unix.MADV_RANDOM)
		}
	}
	const piece = 100_000 // lies across pages and chunks
	pieces := (len(want) + piece - 1) / piece
	for i := range pieces {
		n := i
		if mode == "fault" || pass > 0 { // in another order
			n = (i*7 + 3) % pieces
		}
		off, end := n*piece, min((n+1)*piece, len(want))
		got := make([]byte, end-off)
		if data != nil {
			err = fault(got, data[off:end])
		} else if _, err = f.ReadAt(got, int64(off)); errors.Is(err, io.EOF) {
			err = nil
		}
		switch {
		case err != nil:
			fmt.Println("failed", mode, kind(err))
		case !bytes.Equal(got, want[off:end]):
			fmt.Println("wrong", mode, path, off)
		default:
			right++
		}
	}
	if data != nil {
		unix.Munmap(data)
	}
	return right
}

// fault copies from a mapping.
func fault(to, from []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = syscall.EFAULT
		}
	}()
	copy(to, from)
	return nil
}

func kind(err error) string {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		if errno == syscall.EFAULT {
			return "SIGBUS"
		}
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// reading is a process that reads a model.
type reading struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startReading(t *testing.T, mode, at, dir string, m *fetchtest.Model) *reading {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", at, filepath.Join(dir, "bucket", filepath.Dir(m.Manifest.Model.Object("config.json"))))
	cmd.Env = append(os.Environ(), "LOADER_TEST_READER="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	r := &reading{cmd, bufio.NewReader(out)}
	if line, err := r.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the reader says %q, %v", line, err)
	}
	return r
}

// result returns how many reads were right, and what the reader says of those that were not.
func (r *reading) result() (right int, bad []string, err error) {
	for {
		line, readErr := r.out.ReadString('\n')
		if readErr != nil {
			break
		}
		line = strings.TrimSpace(line)
		if n, _ := fmt.Sscanf(line, "right %d", &right); n == 0 {
			bad = append(bad, line)
		}
	}
	return right, bad, r.cmd.Wait()
}

func (r *reading) check(t *testing.T, mode string) {
	t.Helper()
	if right, bad, err := r.result(); right == 0 || len(bad) > 0 || err != nil {
		t.Errorf("%s: %d reads were right, %q, %v", mode, right, bad, err)
	}
}

func hold(t *testing.T, dir, what string) {
	t.Helper()
	path := filepath.Join(dir, "hold")
	err := os.Remove(path)
	if what != "" {
		err = os.WriteFile(path, []byte(what), 0o644)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
