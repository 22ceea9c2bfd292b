// Package child runs the processes of a demo or a benchmark, so that none outlives it: each has a
// process group of its own, gets SIGTERM when its context ends or when this process is killed, and is
// waited for.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Stopping bounds how long a process may take to end after SIGTERM; then it is killed.
const Stopping = 20 * time.Second

// Error says that a command failed.
type Error struct {
	Command string
	Code    int    // its exit code; -1 when a signal ended it
	Said    string // the last line on its stderr
}

func (e *Error) Error() string {
	if e.Said == "" {
		return fmt.Sprintf("%s: exit code %d", e.Command, e.Code)
	}
	return e.Said
}

// Failed returns the error of a command that ended with err and had said this on its stderr.
func Failed(command string, err error, said *Tail) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", command, err)
	}
	return &Error{Command: command, Code: exit.ExitCode(), Said: string(said.Line())}
}

// Command prepares a process. It has a process group of its own, so that a Ctrl-C is for this process
// alone, which ends the others in their order; when ctx ends it gets SIGTERM, when this process is killed, too.
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = Stopping
	return cmd
}

// Daemon is a process that runs until it is stopped.
type Daemon struct {
	Alive context.Context // ends with the process
	PID   int
	stop  context.CancelFunc
	err   error
}

// Start starts the process that prepare prepares. What it says goes to log.
func Start(log io.Writer, prepare func(context.Context) *exec.Cmd) (*Daemon, error) {
	running, stop := context.WithCancel(context.Background())
	cmd := prepare(running)
	cmd.Stderr = log
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if err := cmd.Start(); err != nil {
		stop()
		return nil, fmt.Errorf("starting %s: %w", strings.Join(cmd.Args, " "), err)
	}
	alive, ended := context.WithCancel(context.Background())
	p := &Daemon{Alive: alive, PID: cmd.Process.Pid, stop: stop}
	go func() {
		p.err = cmd.Wait()
		ended()
	}()
	return p, nil
}

// Err says why it ended, once Alive is done.
func (p *Daemon) Err() error { return p.err }

// End stops it and waits.
func (p *Daemon) End() {
	p.stop()
	<-p.Alive.Done()
}

// Tail keeps the end of what is written to it: enough for the last line.
type Tail struct{ kept []byte }

// maxLine is how much of the end is kept, in bytes; a reader's result has a line for each of its files.
const maxLine = 4 << 20

func (t *Tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if len(t.kept) > 2*maxLine {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-maxLine:]...)
	}
	return len(b), nil
}

// Line returns the last line that is not empty.
func (t *Tail) Line() []byte {
	b := bytes.TrimSpace(t.kept)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

// Lines returns a writer that hands each whole line of what is written to it to say.
func Lines(say func(string)) io.Writer { return &lines{say: say} }

type lines struct {
	say  func(string)
	part []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.part = append(l.part, b...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.say(string(line))
		l.part = rest
	}
}

// Environ returns base with these variables set, and without the ones that would lead out to the real
// Hub and bucket.
func Environ(base []string, set map[string]string) []string {
	outside := []string{"HF_", "HUGGING_FACE_", "HEADSTART_", "STORAGE_EMULATOR_HOST", "GOOGLE_", "CLOUDSDK_"}
	env := slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, again := set[name]
		return again || slices.ContainsFunc(outside, func(p string) bool { return strings.HasPrefix(kv, p) })
	})
	for _, k := range slices.Sorted(maps.Keys(set)) {
		env = append(env, k+"="+set[k])
	}
	return env
}
