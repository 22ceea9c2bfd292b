package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/bench/loading"
	"github.com/headstart-serving/headstart/bench/loading/limit"
	"github.com/headstart-serving/headstart/bench/loading/reading"
	"github.com/headstart-serving/headstart/manifest"
)

func newBenchLoadCommand(p process) *cobra.Command {
	cfg := loading.Config{Environ: os.Environ()}
	part := size(manifest.ChunkSize)
	var model, chart string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Measure node and fetch beside gcsfuse, rclone, transfermanager, Run:ai's streamer and curl",
		Long: `bench load stages a synthetic Gemma into the embedded bucket once, and brings it from there to where it can
be read, in ways that take turns: by the node and by fetch, by a bare loop that receives and checks and
does nothing else, and by the tools of others, as far as they are here. It prints the rate of each, its
processor time and memory, and whether the goals are met. Every byte that any way delivers is compared.

The sets: cold is from the bucket to readable bytes over loopback; warm is what a second pod pays; links
has networks of 5, 16 and 100 Gbit/s between, scaled down so that the last is a sixth of what this machine
can receive, and readers that read as vLLM does, with O_DIRECT, and by Run:ai's streamer;
servers starts a real vLLM, which make demo-vllm installs, over networks that take --seconds for the
model, and waits for its first token. A start takes one to two minutes on two cores. With --keep FILE
what has been measured is kept, and a run that was interrupted, or has more rounds, goes on from there.

It needs root and /dev/fuse, as a node does. Bucket and network are processes of their own, on this
machine, and nothing is left behind. make bench-load installs the other tools, but for Run:ai's streamer:
--python names an interpreter that has it, such as bench/vllm/install.sh makes.`,
		Example: `  make bench-load
  sudo headstart bench load --model gemma-3-270m --set cold --rounds 1
  sudo headstart bench load --set links --part 1MiB --json --svg load.svg
  sudo headstart bench load --set servers --vllm .cache/vllm --seconds 20 --ways plain,node,runai --keep starts.json`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&model, "model", "gemma-3-1b", "synthetic `NAME`: gemma-3-270m, -1b, -4b, -12b or -27b")
	f.StringSliceVar(&cfg.Sets, "set", []string{loading.Cold, loading.Warm}, "`NAMES` of "+strings.Join(loading.Names, ", "))
	f.IntVar(&cfg.Rounds, "rounds", 3, "how often each way runs")
	f.IntSliceVar(&cfg.Gbits, "gbit", []int{5, 16, 100}, "networks of the set links, in `GBIT` a second, where 100 are a sixth of what this machine can receive")
	f.Var(&part, "part", "`SIZE` of a chunk, and of what the peers that can be told ask for at a time; with the set links less than 16MiB, as the network is slower than a real one: then a chunk takes as long as there")
	f.DurationVar(&cfg.RoundTrip, "round-trip", 10*time.Millisecond, "of the networks of the sets links and servers")
	f.Float64Var(&cfg.Stream, "stream", 2, "`GBIT` a second of one stream, where the whole network has 100 in the set links, 16 in the set servers")
	f.DurationVar(&cfg.HeadStart, "head-start", 3*time.Second, "how long a reader reads no weights, in the set links; vLLM's imports take 15s to 20s")
	f.StringVar(&cfg.Peers.Curl, "curl", "", "the `PROGRAM` curl (default: the one in the PATH)")
	f.StringVar(&cfg.Peers.Rclone, "rclone", "", "the `PROGRAM` rclone (default: the one in the PATH)")
	f.StringVar(&cfg.Peers.GCSFuse, "gcsfuse", "", "the `PROGRAM` gcsfuse (default: the one in the PATH)")
	f.StringVar(&cfg.Peers.Manager, "manager", "", "the `PROGRAM` of bench/clients/manager")
	f.StringVar(&cfg.Peers.Python, "python", "", "a `PYTHON` that has runai-model-streamer[gcs]")
	f.StringVar(&cfg.VLLM, "vllm", "", "`DIR` where bench/vllm/install.sh put a vLLM, for the set servers; DIR-cache is kept beside it")
	f.IntSliceVar(&cfg.Seconds, "seconds", []int{5, 20, 60}, "networks of the set servers, by how many `SECONDS` they take for the model")
	f.StringSliceVar(&cfg.ServerWays, "ways", loading.ServerWays, "`WAYS` of the set servers: "+strings.Join(loading.ServerWays, ", "))
	f.StringVar(&cfg.Keep, "keep", "", "`FILE` of the starts of the set servers so far")
	f.StringVar(&cfg.BucketDir, "bucket-dir", "/dev/shm", "`DIR` where the bucket is made; a disk is slower than a bucket")
	f.StringVar(&cfg.Scratch, "scratch-dir", os.TempDir(), "`DIR` for homes and mounts")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, with every run")
	f.StringVar(&chart, "svg", "", "also draw the rates into this `FILE`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, s := range cfg.Sets {
			if !slices.Contains(loading.Names, s) {
				return usageError{fmt.Errorf("--set %s: want %s", s, strings.Join(loading.Names, ", "))}
			}
		}
		for _, w := range cfg.ServerWays {
			if !slices.Contains(loading.ServerWays, w) {
				return usageError{fmt.Errorf("--ways %s: want %s", w, strings.Join(loading.ServerWays, ", "))}
			}
		}
		if slices.Contains(cfg.Sets, loading.Serve) {
			var err error
			if cfg.VLLM, err = vllmAt(cfg.VLLM); err != nil {
				return err
			}
		}
		if slices.ContainsFunc(cfg.Gbits, func(g int) bool { return g < 1 || g > 100 }) {
			return usageError{errors.New("--gbit is from 1 to 100")}
		}
		if slices.ContainsFunc(cfg.Seconds, func(s int) bool { return s < 1 }) {
			return usageError{errors.New("--seconds is at least 1")}
		}
		if cfg.Rounds < 1 || cfg.Stream <= 0 || cfg.RoundTrip < 0 || cfg.HeadStart < 0 {
			return usageError{errors.New("--rounds is at least 1, --stream is more than 0, --round-trip and --head-start are not negative")}
		}
		if err := part.ofChunks(); err != nil {
			return usageError{fmt.Errorf("--part %w", err)}
		}
		cfg.Part = int64(part)
		repos, err := syntheticRepos([]string{model}, 0)
		if err != nil {
			return usageError{err}
		}
		cfg.Repo, cfg.Hub = repos[0], []string{"--model", model}
		if err := peers(&cfg.Peers); err != nil {
			return usageError{err}
		}
		if cfg.Self, err = os.Executable(); err != nil {
			return err
		}
		cfg.Say = sayer(p.Stderr)
		ctx, stop := untilCleaned(cmd.Context())
		defer stop()
		r, err := loading.Run(ctx, cfg)
		if err != nil && len(r.Loads) == 0 && r.Servers == nil {
			return classified(err)
		}
		if err != nil { // minutes have gone into what there is
			return errors.Join(p.writeLoads(&r, chart, asJSON), classified(err))
		}
		return p.writeLoads(&r, chart, asJSON)
	}
	return cmd
}

// writeLoads writes a result, and draws it where a chart is wanted.
func (p process) writeLoads(r *loading.Result, chart string, asJSON bool) error {
	if chart != "" {
		if err := os.WriteFile(chart, r.SVG(), 0o644); err != nil {
			return err
		}
	}
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(r)
	}
	return r.Write(p.Stdout)
}

// peers makes the paths of the programs absolute; one that is named must be there.
func peers(of *loading.Peers) (err error) {
	for _, x := range []struct {
		program         *string
		flag, inThePath string
	}{
		{&of.Curl, "curl", "curl"}, {&of.Rclone, "rclone", "rclone"}, {&of.GCSFuse, "gcsfuse", "gcsfuse"},
		{&of.Manager, "manager", ""}, {&of.Python, "python", ""},
	} {
		if *x.program == "" && x.inThePath == "" {
			continue
		}
		if *x.program, err = program(*x.program, x.flag); err != nil {
			return err
		}
	}
	return nil
}

// newBenchLimitCommand is the bare loop of bench load, a process of its own for its processor time.
func newBenchLimitCommand(p process) *cobra.Command {
	var c limit.Config
	cmd := &cobra.Command{
		Use:    "limit MODEL@COMMIT DIR",
		Short:  "Receive a model from STORAGE_EMULATOR_HOST with the least that a checked load has to do",
		Args:   cobra.ExactArgs(2),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := manifest.ParseReference(args[0])
			if err != nil || !manifest.IsCommit(ref.Revision) {
				return usageError{fmt.Errorf("%q is not MODEL@COMMIT", args[0])}
			}
			service := p.Getenv("STORAGE_EMULATOR_HOST")
			if service == "" {
				return usageError{errors.New("set STORAGE_EMULATOR_HOST: this is for the embedded bucket only")}
			}
			c.Bucket = strings.TrimSuffix(service, "/") + "/" + c.Bucket
			c.Model, c.Dir = manifest.Model{Repo: ref.Repo, Commit: ref.Revision}, args[1]
			n, err := limit.Receive(cmd.Context(), c)
			if err != nil {
				return err
			}
			return json.NewEncoder(p.Stdout).Encode(map[string]any{"bytes": n})
		},
	}
	cmd.Flags().StringVar(&c.Bucket, "bucket-name", "models", "`NAME` of the bucket")
	cmd.Flags().IntVar(&c.Streams, "streams", 8, "ranges that are received at once")
	return cmd
}

// newBenchReadCommand is the reader of bench load.
func newBenchReadCommand(p process) *cobra.Command {
	return &cobra.Command{
		Use:    "read DIR FILE...",
		Short:  "Read files one after the other and print their CRC32C",
		Args:   cobra.MinimumNArgs(2),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			sums, err := reading.Files(cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			return json.NewEncoder(p.Stdout).Encode(map[string]any{"crc32c": sums})
		},
	}
}
