// Package server starts the servers of a benchmark: commands of this binary that are processes of their
// own, so that what they take is not counted as somebody else's.
package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
)

// starting bounds how long a server may take until it says where it is.
const starting = 30 * time.Second

// Server is a process that serves.
type Server struct {
	*child.Daemon
	Lines []string // that it said on stdout when it was ready
}

// Start starts a command of the binary self that says n lines on stdout when it is ready.
func Start(ctx context.Context, self string, environ []string, n int, args ...string) (*Server, error) {
	said, ready := new(child.Tail), &lines{want: n, done: make(chan []string, 1)}
	d, err := child.Start(said, func(ctx context.Context) *exec.Cmd {
		cmd := child.Command(ctx, self, args...)
		cmd.Env = child.Environ(environ, nil)
		cmd.Stdout = ready
		return cmd
	})
	if err != nil {
		return nil, err
	}
	s := &Server{Daemon: d}
	late := time.NewTimer(starting)
	defer late.Stop()
	select {
	case s.Lines = <-ready.done:
		return s, nil
	case <-d.Alive.Done():
		return nil, child.Failed("headstart "+args[0], d.Err(), said)
	case <-late.C:
		err = fmt.Errorf("headstart %s is not ready after %v", args[0], starting)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	d.End()
	return nil, err
}

// lines hands over the first lines that are written to it, once, and drops the rest.
type lines struct {
	want int
	part []byte
	got  []string
	done chan []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.part = append(l.part, b...)
	for len(l.got) < l.want {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.got, l.part = append(l.got, string(line)), rest
		if len(l.got) == l.want {
			l.done <- l.got
		}
	}
	l.part = nil
	return len(b), nil
}

var _ io.Writer = (*lines)(nil)
