package loading

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/bench/vllm"
	"github.com/headstart-serving/headstart/manifest"
)

// fakeVenv is an environment whose python is fakeServer.
func fakeVenv(t *testing.T, test string) string {
	t.Helper()
	venv := filepath.Join(t.TempDir(), "venv")
	for _, dir := range []string{"bin", "lib"} {
		if err := os.MkdirAll(filepath.Join(venv, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(test, filepath.Join(venv, "bin", "python")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(venv, "lib", "module.py"), []byte("pass"), 0o644); err != nil {
		t.Fatal(err)
	}
	return venv
}

// fakeServer is serve.py: it reads the weights from where it is told to, and what it says follows from them.
// Each start is noted in the file that SERVER_STARTS names.
func fakeServer() error {
	value := func(flag string) string { return os.Args[slices.Index(os.Args, flag)+1] }
	end := slices.Index(os.Args, "--")
	model, flags := os.Args[end-1], os.Args[end+1:]
	if err := os.MkdirAll(filepath.Join(value("--cache"), inspected), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(os.Getenv("SERVER_STARTS"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, filepath.Base(model), flags); err != nil {
		return err
	}
	var data []byte
	if object, ok := strings.CutPrefix(model, "gs://"); ok {
		if len(flags) != 1 || flags[0] != runaiFormat || os.Getenv("VLLM_ASSETS_CACHE") == "" {
			return fmt.Errorf("%s with %q", model, flags)
		}
		data, err = body(os.Getenv("CLOUD_STORAGE_EMULATOR_ENDPOINT") + "/" + object + "/model.safetensors")
	} else {
		data, err = os.ReadFile(filepath.Join(model, "model.safetensors"))
	}
	if err != nil {
		return err
	}
	if fault := os.Getenv("PEER_FAULT"); fault == "die" {
		fmt.Println(`{"ready": false, "error": "vLLM ended with status 1", "log": ["INFO one", "RuntimeError: no room"]}`)
		os.Exit(1)
	} else if fault == "talk" && len(flags) > 0 {
		data[len(data)-1]++
	}
	fmt.Fprintln(os.Stderr, "   1.0 s  vLLM: weights wanted")
	said := vllm.Answer{Tokens: []int{int(crc32.Checksum(data, manifest.Castagnoli))}}
	return json.NewEncoder(os.Stdout).Encode(vllm.Result{
		Ready: true, Steps: map[string]float64{weightsWanted: 1.5, weightsLoaded: 2, firstToken: 3}, Completion: said, Chat: said,
	})
}

// TestKeep: what has been run is not run again, and the pieces make one result.
func TestKeep(t *testing.T) {
	cfg := config(t, Serve)
	cfg.Keep = filepath.Join(t.TempDir(), "keep.json")
	starts := filepath.Join(t.TempDir(), "starts")
	cfg.Environ = append(cfg.Environ, "SERVER_STARTS="+starts)
	begun := func() []string {
		data, err := os.ReadFile(starts)
		if err != nil {
			t.Fatal(err)
		}
		_ = os.Truncate(starts, 0)
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
	var r Result
	for _, x := range []struct {
		ways    []string
		seconds []int
		rounds  int
		starts  int
	}{
		{[]string{"plain"}, []int{1}, 1, 2}, // and the one that fills the cache
		{[]string{"runai"}, []int{2}, 1, 1},
		{[]string{"node", "runai"}, []int{2, 1}, 1, 3},
		{[]string{"plain", "node"}, []int{1}, 2, 2},
	} {
		cfg.ServerWays, cfg.Seconds, cfg.Rounds = x.ways, x.seconds, x.rounds
		var err error
		if r, err = Run(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if got := begun(); len(got) != x.starts {
			t.Errorf("%+v: started %q", x, got)
		}
	}
	s := r.Servers
	if len(s.Plain.Runs) != 2 || len(s.Over) != 2 || len(s.Over[0].Starts) != 2 || len(s.Over[1].Starts) != 2 {
		t.Fatalf("%+v", s)
	}
	if got := s.Over[0].start(startName); len(got.Runs) != 2 || got.First.Median < 3 || len(s.Over[0].Goals) != 1 {
		t.Errorf("%+v", s.Over[0])
	}
	cfg.RoundTrip *= 2
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("over another network: %v", err)
	}
	if err := os.WriteFile(cfg.Keep, []byte(`{"model": "acme/other", "servers": {}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "acme/other") {
		t.Errorf("of another model: %v", err)
	}
	nothingLeft(t, cfg)
}

// TestServerFails: a start that fails shows the end of vLLM's log, and other tokens are an error.
func TestServerFails(t *testing.T) {
	for fault, is := range map[string]func(error) bool{
		"die": func(err error) bool { return strings.Contains(err.Error(), "\n  RuntimeError: no room") },
		"talk": func(err error) bool {
			return errors.Is(err, manifest.ErrInvalid) && strings.Contains(err.Error(), "tokens")
		},
	} {
		cfg := config(t, Serve)
		cfg.Environ = append(cfg.Environ, "PEER_FAULT="+fault)
		if _, err := Run(t.Context(), cfg); err == nil || !is(err) {
			t.Errorf("%s: %v", fault, err)
		}
		nothingLeft(t, cfg)
	}
	cfg := config(t, Serve)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	cfg.Say = func(line string) {
		if strings.Contains(line, "weights wanted") {
			cancel(interrupted)
		}
	}
	if _, err := Run(ctx, cfg); !errors.Is(err, interrupted) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, cfg)
}
