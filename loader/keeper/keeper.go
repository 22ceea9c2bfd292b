// Package keeper lets a node's readers outlive the process that serves them.
//
// A FUSE connection ends when the last descriptor of it is closed, and every reader that waits then
// gets an error. So the node is two processes: a worker that does everything, and its parent, which
// does next to nothing and holds a second descriptor of each of the worker's connections. When the
// worker dies by a signal or a panic, the kernel lets readers and page faults wait; the parent starts
// the next worker and gives it the descriptors with what was said of them, word for word.
//
// The two talk over a socket pair, one message a packet. What the worker has sent before it died is
// read before the next one starts, so a worker need not wait for an answer: what Keep, Note and Drop
// have returned from is remembered.
//
// The worker dies with the parent, and the connections with both: then it is as if there were none.
// That is so when a pod is deleted, and when memory.oom.group is set, as the kubelet does by default
// with cgroup v2: a container that runs out of memory is killed whole. Files that were opened when they
// were complete, and bind mounts, go on even then.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FD is the descriptor at which a worker finds its parent.
const FD = 3

// Config is what a Keeper needs.
type Config struct {
	// Command makes the worker's command. Its input and output are files or nil.
	Command func() *exec.Cmd
	Log     *slog.Logger
	// A worker that lives for less than Steady has died fast, and the one after Limit of them in a row
	// is not started any more. 0 means 10 s and 8.
	Steady time.Duration
	Limit  int
}

// Keeper starts a worker again and again.
type Keeper struct {
	cfg      Config
	table    table
	restarts int
	cause    string // why the last worker died
	fast     int    // workers in a row that died soon
}

// New returns a keeper without a worker.
func New(cfg Config) *Keeper {
	if cfg.Steady <= 0 {
		cfg.Steady = 10 * time.Second
	}
	if cfg.Limit <= 0 {
		cfg.Limit = 8
	}
	return &Keeper{cfg: cfg}
}

// Run starts the worker, tells it by SIGTERM when ctx ends, and returns the exit code of the last one.
// As process 1 it also reaps whatever ends up below it.
func (k *Keeper) Run(ctx context.Context) (code int, err error) {
	// The kernel sends a child its parent's death when the thread that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer k.table.close()
	for {
		began := time.Now()
		w, err := k.start()
		if err != nil {
			return 0, fmt.Errorf("starting the node's worker: %w", err)
		}
		status := w.run(ctx)
		if !k.again(ctx, w, status) {
			return exit(status)
		}
		if time.Since(began) >= k.cfg.Steady {
			k.fast = 0
		}
		if k.fast++; k.fast > k.cfg.Limit {
			return 0, fmt.Errorf("the node's worker died %d times within %v of its start, the last time of %s: see its log above; readers that wait get an error now", k.fast, k.cfg.Steady, k.cause)
		}
		if !pause(ctx, k.fast) {
			return exit(status)
		}
	}
}

// again notes why a worker has died and reports whether another one is to take its place.
func (k *Keeper) again(ctx context.Context, w *worker, status syscall.WaitStatus) bool {
	if ctx.Err() != nil || !k.died(w, status) {
		return false
	}
	k.restarts++
	k.cause = cause(status)
	k.cfg.Log.Error("the node's worker died and is started again: readers wait meanwhile", "cause", k.cause, "restarts", k.restarts, "connections", k.table.len())
	return true
}

// died tells a death from an end: an exit code is the worker's last word, except that of a panic,
// and except after a restart that did not succeed yet, for readers wait for that.
func (k *Keeper) died(w *worker, status syscall.WaitStatus) bool {
	const panicked = 2 // the Go runtime's
	switch {
	case status.Signaled():
		return true
	case status.ExitStatus() == panicked && w.ready:
		return true
	}
	return status.ExitStatus() != 0 && !w.ready && k.restarts > 0
}

func cause(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal " + status.Signal().String()
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

func exit(status syscall.WaitStatus) (int, error) {
	if status.Signaled() {
		return 0, fmt.Errorf("the node's worker was ended by signal %v while it stopped", status.Signal())
	}
	return status.ExitStatus(), nil
}

// pause waits before the next worker: not at all the first time, for readers wait.
func pause(ctx context.Context, fast int) bool {
	if fast <= 1 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(min(100*time.Millisecond<<(fast-2), 5*time.Second))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// worker is one that runs.
type worker struct {
	keeper *Keeper
	cmd    *exec.Cmd
	socket int
	ready  bool // it said so; valid when it has ended
}

func (k *Keeper) start() (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	cmd := k.cfg.Command()
	cmd.ExtraFiles = []*os.File{theirs}
	// A group of its own: a Ctrl-C is for the parent, which passes it on once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	return &worker{keeper: k, cmd: cmd, socket: pair[0]}, nil
}

// run talks to the worker until it has ended and all that it said was heard.
func (w *worker) run(ctx context.Context) syscall.WaitStatus {
	defer unix.Close(w.socket)
	// What cannot be given to a worker that dies is given to the next one.
	gift := append([]packet{w.keeper.hello()}, w.keeper.table.all()...)
	var talk sync.WaitGroup
	talk.Go(func() { give(w.socket, gift) })
	talk.Go(w.listen)
	stop := context.AfterFunc(ctx, func() { w.cmd.Process.Signal(syscall.SIGTERM) })
	status := reap(w.cmd.Process.Pid)
	stop()
	unix.Shutdown(w.socket, unix.SHUT_RDWR) // what is on its way is still received
	talk.Wait()
	w.cmd.Process.Release()
	return status
}

func (w *worker) listen() {
	for {
		p, err := receive(w.socket)
		if err != nil {
			if !errors.Is(err, errEnd) {
				w.keeper.cfg.Log.Error("the node's worker cannot be heard any more: its next restart fails its readers", "err", err)
				unix.Shutdown(w.socket, unix.SHUT_RD) // it is not to wait for an ear
			}
			return
		}
		if p.Op == opReady {
			w.ready = true
		} else {
			w.keeper.table.apply(p)
		}
	}
}

// reap waits for the end of a child, and meanwhile, as process 1, for that of any other.
func reap(pid int) syscall.WaitStatus {
	which := pid
	if os.Getpid() == 1 {
		which = -1
	}
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(which, &status, 0, nil)
		if got == pid {
			return status
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			panic("keeper: the worker was reaped by somebody else: " + err.Error())
		}
	}
}
