package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// stopping bounds how long a process may take to end after SIGTERM; then it is killed.
const stopping = 20 * time.Second

// CommandError says that a headstart command failed.
type CommandError struct {
	Command string
	Code    int    // its exit code; -1 when a signal ended it
	Said    string // the last line on its stderr
}

func (e *CommandError) Error() string {
	if e.Said == "" {
		return fmt.Sprintf("%s: exit code %d", e.Command, e.Code)
	}
	return e.Said
}

// process prepares a headstart command. It has a process group of its own, so that a Ctrl-C is for the
// demo alone, which ends its processes in their order; when ctx ends it gets SIGTERM, when the demo is killed, too.
func (d *demo) process(ctx context.Context, args ...string) *exec.Cmd {
	d.say("$ headstart %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.cfg.Self, args...)
	cmd.Env = d.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if args[0] != "replay" { // a reader has nothing to clean up, and may hang in a page fault
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	}
	cmd.WaitDelay = stopping
	return cmd
}

// command runs a headstart command to its end and decodes the last line of its stdout into result.
func (d *demo) command(ctx context.Context, result any, args ...string) error {
	cmd := d.process(ctx, args...)
	var out, said tail
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return failed(args[0], err, &said)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(out.line(), result); err != nil {
		return fmt.Errorf("headstart %s: its result: %w", args[0], err)
	}
	return nil
}

func failed(name string, err error, said *tail) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("headstart %s: %w", name, err)
	}
	return &CommandError{Command: "headstart " + name, Code: exit.ExitCode(), Said: string(said.line())}
}

// tail keeps the end of what is written to it: enough for the last line.
type tail struct{ kept []byte }

// maxLine is how much of the end is kept, in bytes; a reader's result has a line for each of its files.
const maxLine = 4 << 20

func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if len(t.kept) > 2*maxLine {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-maxLine:]...)
	}
	return len(b), nil
}

// line returns the last line that is not empty.
func (t *tail) line() []byte {
	b := bytes.TrimSpace(t.kept)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

// daemon is a process that runs until it is stopped.
type daemon struct {
	stop  context.CancelFunc
	alive context.Context // ends with the process
	err   error           // why it ended
}

// start starts a daemon. What it says goes to log.
func (d *demo) start(log io.Writer, args ...string) (*daemon, error) {
	running, stop := context.WithCancel(context.Background())
	cmd := d.process(running, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		stop()
		return nil, fmt.Errorf("starting headstart %s: %w", args[0], err)
	}
	alive, ended := context.WithCancel(context.Background())
	p := &daemon{stop: stop, alive: alive}
	go func() {
		p.err = cmd.Wait()
		ended()
	}()
	return p, nil
}

// end stops it and waits.
func (p *daemon) end() {
	p.stop()
	<-p.alive.Done()
}
