package vllm_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/bench/vllm"
)

// stand makes an environment whose vllm command is testdata/vllm, and a model directory with a plan.
// The server connects to the listener; the connection ends when it and its children are gone.
func stand(t *testing.T, plan string) (vllm.Config, net.Listener) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3: serve.py cannot run")
	}
	venv, model := t.TempDir(), t.TempDir()
	self, err := filepath.Abs("testdata/vllm")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(venv, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"python": python, "vllm": self} {
		if err := os.Symlink(to, filepath.Join(venv, "bin", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(model, "plan"), []byte(plan), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(model, "alive"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return vllm.Config{Venv: venv, Dir: model, Log: filepath.Join(model, "log")}, l
}

// accept returns the server's connection. The deadline is there for when it never comes.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	at := time.Now().Add(time.Minute)
	if err := l.(*net.UnixListener).SetDeadline(at); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("the server did not come up: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(at); err != nil {
		t.Fatal(err)
	}
	return c
}

// gone fails the test when a process of the server is alive, or something that it made is there.
func gone(t *testing.T, cfg vllm.Config, alive net.Conn) {
	t.Helper()
	defer func() {
		left, err := os.ReadFile(filepath.Join(cfg.Dir, "left"))
		if err != nil {
			t.Error(err)
		}
		for _, path := range strings.Fields(string(left)) {
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left (%v)", path, err)
			}
		}
	}()
	if _, err := io.ReadAll(alive); err != nil {
		t.Errorf("something of the server is left: %v", err)
	}
}

func TestRun(t *testing.T) {
	cfg, alive := stand(t, "answer")
	var steps strings.Builder
	cfg.Steps = &steps
	r, err := vllm.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Ready || !slices.Equal(r.Completion.Tokens, []int{1, 2, 3}) || !slices.Equal(r.Chat.Tokens, []int{4, 5}) || r.Chat.Text != "chat" {
		t.Errorf("%+v", r)
	}
	if len(r.Steps) != 11 || len(r.Phases) != 8 {
		t.Errorf("%d steps, %d phases: %+v", len(r.Steps), len(r.Phases), r)
	}
	at := 0.0
	for _, p := range r.Phases {
		if p.Start < at || p.End < p.Start {
			t.Errorf("phase %q from %v to %v, the one before ended at %v", p.Name, p.Start, p.End, at)
		}
		at = p.End
	}
	if strings.Count(steps.String(), "\n") != len(r.Steps) {
		t.Errorf("told %q", steps.String())
	}
	if log, err := os.ReadFile(cfg.Log); err != nil || !strings.Contains(string(log), "Loading weights took") {
		t.Errorf("log %q, %v", log, err)
	}
	gone(t, cfg, accept(t, alive))
}

func TestServerDies(t *testing.T) {
	cfg, alive := stand(t, "die")
	r, err := vllm.Run(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "status 3") || r.Ready || !slices.Contains(r.Log, "RuntimeError: no room") {
		t.Errorf("%+v, %v", r, err)
	}
	gone(t, cfg, accept(t, alive))
}

func TestCancel(t *testing.T) {
	cfg, alive := stand(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran := make(chan error)
	go func() {
		_, err := vllm.Run(ctx, cfg)
		ran <- err
	}()
	c := accept(t, alive)
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	gone(t, cfg, c)
}

// TestFollow kills the process that started serve.py with SIGKILL.
func TestFollow(t *testing.T) {
	cfg, alive := stand(t, "hang")
	cmd := exec.Command("sh", "-c", `"$0" serve.py --follow --venv "$1" "$2" & wait`, filepath.Join(cfg.Venv, "bin", "python"), cfg.Venv, cfg.Dir)
	said, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout = stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	c := accept(t, alive)
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := io.ReadAll(said); err != nil { // until serve.py, too, has ended
		t.Error(err)
	}
	gone(t, cfg, c)
}

func TestNoEnvironment(t *testing.T) {
	_, err := vllm.Run(t.Context(), vllm.Config{Venv: filepath.Join(t.TempDir(), "none"), Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "install.sh") {
		t.Errorf("%v", err)
	}
}

func TestSameAnswers(t *testing.T) {
	a := vllm.Result{Ready: true, Chat: vllm.Answer{Tokens: []int{1}}, Completion: vllm.Answer{Tokens: []int{2}}}
	b := a
	if !vllm.SameAnswers(a, b) {
		t.Error("the same are not the same")
	}
	b.Chat.Tokens = []int{3}
	if vllm.SameAnswers(a, b) || vllm.SameAnswers(vllm.Result{}, vllm.Result{}) {
		t.Error("other answers, or none, are the same")
	}
}
