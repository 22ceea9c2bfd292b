package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/staging"
)

func newBenchCommand(p process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "The numbers in the README, reproduced on this machine",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchStageCommand(p), newBenchLoadCommand(p), newBenchLinkCommand(p), newBenchBareCommand(p), newBenchLimitCommand(p), newBenchReadCommand(p))
	for _, c := range cmd.Commands() {
		c.Args = usageArgs(c.Args)
	}
	return cmd
}

func newBenchStageCommand(p process) *cobra.Command {
	cfg := staging.Config{Environ: os.Environ(), Far: link.Shape{RoundTrip: 30 * time.Millisecond}}
	var model string
	var stream int
	var asJSON, discard bool
	cmd := &cobra.Command{
		Use:   "stage",
		Short: "Measure stage beside hf download + rclone copy, and beside a bare loop",
		Long: `bench stage brings a synthetic Gemma from the embedded Hub to the embedded bucket in three ways that take
turns: headstart stage, hf download followed by rclone copy, and a bare loop that hashes once and checks
nothing. It prints the rate of each, its processor time, memory and disk, and whether the goals are met.

The scenarios: near is loopback; far has a round trip and a limit of each stream; narrow is a link of
half of the bare loop's rate; discard stages into a bucket that sums what comes and drops it, for models
that are larger than the memory.

Hub, bucket and network are processes of their own, on this machine. The bucket is emptied after each
run, and nothing is left behind. hf and rclone are taken from --hf and --rclone or the PATH; make
bench-stage installs them.`,
		Example: `  make bench-stage
  headstart bench stage --model gemma-3-1b --scenario far --rounds 1
  headstart bench stage --model gemma-3-27b --discard --rounds 1 --json`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&model, "model", "gemma-3-4b", "synthetic `NAME`: gemma-3-270m, -1b, -4b, -12b or -27b")
	f.StringSliceVar(&cfg.Scenarios, "scenario", []string{"near", "far", "narrow"}, "`NAMES` of "+strings.Join(staging.Names, ", "))
	f.BoolVar(&discard, "discard", false, "short for --scenario discard")
	f.IntVar(&cfg.Rounds, "rounds", 3, "how often each way runs in each scenario")
	f.DurationVar(&cfg.Far.RoundTrip, "round-trip", cfg.Far.RoundTrip, "of the scenario far")
	f.IntVar(&stream, "stream", 50, "`MB` a second of one stream in the scenario far")
	f.StringVar(&cfg.HF, "hf", "", "the `PROGRAM` hf (default: the one in the PATH)")
	f.StringVar(&cfg.Rclone, "rclone", "", "the `PROGRAM` rclone (default: the one in the PATH)")
	f.StringVar(&cfg.BucketDir, "bucket-dir", "/dev/shm", "`DIR` where the bucket is made; a disk is slower than a bucket")
	f.StringVar(&cfg.Scratch, "scratch-dir", os.TempDir(), "`DIR` for what the ways put on a disk")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, with every run")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if discard {
			cfg.Scenarios = []string{"discard"}
		}
		for _, s := range cfg.Scenarios {
			if !slices.Contains(staging.Names, s) {
				return usageError{fmt.Errorf("--scenario %s: want %s", s, strings.Join(staging.Names, ", "))}
			}
		}
		if slices.Contains(cfg.Scenarios, "narrow") && !slices.Contains(cfg.Scenarios, "near") {
			return usageError{errors.New("--scenario narrow needs near, where the bare loop's rate is measured")}
		}
		if cfg.Rounds < 1 || stream < 1 || cfg.Far.RoundTrip < 0 {
			return usageError{errors.New("--rounds and --stream are at least 1, --round-trip is not negative")}
		}
		cfg.Far.Stream = int64(stream) * 1e6
		repos, err := syntheticRepos([]string{model}, 0)
		if err != nil {
			return usageError{err}
		}
		cfg.Repo, cfg.Hub = repos[0], []string{"--model", model}
		for _, x := range []struct {
			program *string
			name    string
		}{{&cfg.HF, "hf"}, {&cfg.Rclone, "rclone"}} {
			if *x.program, err = program(*x.program, x.name); err != nil {
				return usageError{err}
			}
		}
		if cfg.Self, err = os.Executable(); err != nil {
			return err
		}
		cfg.Say = sayer(p.Stderr)
		ctx, stop := untilCleaned(cmd.Context())
		defer stop()
		r, err := staging.Run(ctx, cfg)
		if err != nil {
			return classified(err)
		}
		if asJSON {
			return json.NewEncoder(p.Stdout).Encode(r)
		}
		return r.Write(p.Stdout)
	}
	return cmd
}

// program returns the absolute path of a program: the one that a flag names, which must be there, or the
// one in the PATH, or "".
func program(flag, name string) (string, error) {
	path, err := exec.LookPath(flag)
	if flag == "" {
		if path, err = exec.LookPath(name); err != nil {
			return "", nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("--%s: %w", name, err)
	}
	return filepath.Abs(path)
}
