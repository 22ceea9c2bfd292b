package stager_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/file"
	"github.com/headstart-serving/headstart/stager/hf"
)

// childVariable makes the test binary a process that stages into the directory it names.
const childVariable = "HEADSTART_TEST_STAGE_INTO"

// child says each event on stdout and waits for a line on stdin before it goes on.
func child(dir string) int {
	store, err := file.New(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r := smallRepo()
	source, err := childSource(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	in := bufio.NewReader(os.Stdin)
	s := stager.New(stager.Config{Source: source, Store: store, ChunkSize: chunkSize, Progress: func(e stager.Event) {
		fmt.Println(e.Kind, e.Path)
		in.ReadString('\n')
	}})
	if _, err := s.Stage(context.Background(), manifest.Reference{Repo: r.name}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// hubVariable lets the child stage from the Hub that it names.
const hubVariable = "HEADSTART_TEST_STAGE_FROM"

func childSource(r *repo) (stager.Source, error) {
	if hub := os.Getenv(hubVariable); hub != "" {
		return hf.New(hf.Config{Endpoint: hub})
	}
	return &memory{repo: r}, nil
}

// TestKilled kills a real process with SIGKILL at each of its events, and lets another one go on.
func TestKilled(t *testing.T) {
	killed(t, smallRepo(), "", func() stager.Source { return &memory{repo: smallRepo()} })
}

// killed stages r from hub ("": from memory) in a process, and what that leaves from the source.
func killed(t *testing.T, r *repo, hub string, source func() stager.Source) {
	kills := 0
	for at, done := 0, false; !done; at++ {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+dir, hubVariable+"="+hub)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == at {
				kills++
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
				break
			}
			fmt.Fprintln(in)
		}
		done = cmd.Wait() == nil // there were fewer events
		store := openDir(t, dir)
		result, err := newStager(source(), store).Stage(t.Context(), manifest.Reference{Repo: r.name})
		if err != nil {
			t.Errorf("after event %d: %v", at, err)
		}
		if done && !result.Already {
			t.Errorf("after a run that came through: %+v", result)
		}
		checkStaged(t, store, r)
	}
	if kills < 15 {
		t.Errorf("%d kills", kills)
	}
	t.Logf("%d kills", kills)
}
