// Package vllm starts a real vLLM server on a model's directory, on the CPU, and reports when each step
// of its start was done and which tokens it answered. install.sh makes the environment it runs in;
// serve.py, which also runs by itself, does the work.
package vllm

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

//go:embed serve.py
var script []byte

// Config says what to serve.
type Config struct {
	Venv  string    // the directory that install.sh made
	Dir   string    // the model; or the URL of a bucket's folder, for a load format that takes one
	Cache string    // kept between runs, so that vLLM need not inspect the model again; "" for vLLM's own
	Log   string    // file for the server's output; "" for none
	Steps io.Writer // a line when a step is done; nil for none
	Flags []string  // of vLLM's own
	// Environ is the server's environment; nil for this process's. serve.py adds what vLLM needs.
	Environ []string
}

// Result is what serve.py prints. Times are seconds since the server process was started.
type Result struct {
	Ready      bool               `json:"ready"`
	Steps      map[string]float64 `json:"steps"`
	Phases     []Phase            `json:"phases"`
	Completion Answer             `json:"completion"`
	Chat       Answer             `json:"chat"`
	Error      string             `json:"error,omitempty"`
	Log        []string           `json:"log,omitempty"` // the last lines, when it did not become ready
}

// Phase is a stretch of the server's start.
type Phase struct {
	Name  string  `json:"name"`
	Start float64 `json:"start_s"`
	End   float64 `json:"end_s"`
}

// Answer is what the model said at temperature 0: the same weights say the same.
type Answer struct {
	Tokens []int  `json:"token_ids"`
	Text   string `json:"text"`
}

// SameAnswers reports whether both servers answered, and with the same tokens.
func SameAnswers(a, b Result) bool {
	return a.Ready && b.Ready && len(a.Chat.Tokens) > 0 && len(a.Completion.Tokens) > 0 &&
		slices.Equal(a.Chat.Tokens, b.Chat.Tokens) && slices.Equal(a.Completion.Tokens, b.Completion.Tokens)
}

// stopping bounds how long the server may take to end after it was asked to.
const stopping = 30 * time.Second

// Run starts the server, asks it, and stops it; nothing of it is left when Run returns.
func Run(ctx context.Context, cfg Config) (Result, error) {
	args := []string{"-", "--venv", cfg.Venv, "--follow"}
	if cfg.Cache != "" {
		args = append(args, "--cache", cfg.Cache)
	}
	if cfg.Log != "" {
		args = append(args, "--log", cfg.Log)
	}
	args = append(append(args, cfg.Dir, "--"), cfg.Flags...)
	cmd := exec.CommandContext(ctx, filepath.Join(cfg.Venv, "bin", "python"), args...)
	var stdout bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(script), &stdout, cfg.Steps
	cmd.Env = cfg.Environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the caller, which ends this in its own order
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopping
	err := cmd.Run()
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return Result{}, fmt.Errorf("starting vLLM from %s: %w (make it with bench/vllm/install.sh)", cfg.Venv, err)
	}
	var r Result
	if bad := json.Unmarshal(stdout.Bytes(), &r); bad != nil {
		return r, fmt.Errorf("starting vLLM on %s: %w", cfg.Dir, errors.Join(err, bad))
	}
	if !r.Ready {
		return r, fmt.Errorf("starting vLLM on %s: %s", cfg.Dir, r.Error)
	}
	return r, nil
}
