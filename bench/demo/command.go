package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/headstart-serving/headstart/bench/child"
)

// process prepares a headstart command.
func (d *demo) process(ctx context.Context, args ...string) *exec.Cmd {
	d.say("$ headstart %s", strings.Join(args, " "))
	cmd := child.Command(ctx, d.cfg.Self, args...)
	cmd.Env = d.env
	if args[0] == "replay" { // a reader has nothing to clean up, and may hang in a page fault
		cmd.Cancel = func() error { return cmd.Process.Kill() }
	}
	return cmd
}

// command runs a headstart command to its end and decodes the last line of its stdout into result.
func (d *demo) command(ctx context.Context, result any, args ...string) error {
	cmd := d.process(ctx, args...)
	var out, said child.Tail
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return child.Failed("headstart "+args[0], err, &said)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(out.Line(), result); err != nil {
		return fmt.Errorf("headstart %s: its result: %w", args[0], err)
	}
	return nil
}

// start starts a daemon. What it says goes to log.
func (d *demo) start(log io.Writer, args ...string) (*child.Daemon, error) {
	return child.Start(log, func(ctx context.Context) *exec.Cmd { return d.process(ctx, args...) })
}
