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

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/manifest"
)

func newReplayCommand(p process) *cobra.Command {
	var expect, order string
	var headStart time.Duration
	var asJSON, direct bool
	cmd := &cobra.Command{
		Use:   "replay DIR",
		Short: "Read a model's directory the way vLLM does when it starts, and say where the time went",
		Long: `replay reads DIR as vLLM 0.32 does: config, tokenizer and the header of every *.safetensors
file; then nothing for as long as Python imports; then every weight through a mapping, file by file
in natural order and tensor by tensor in the order of their names. Then it reads all of it again,
when it is in memory: the difference is the stall, the time lost because bytes were not there.

With --direct it reads the files whole into memory of its own, 16 pieces of 8 MiB side by side, as Run:ai's
streamer and InstantTensor do: around the page cache where the file system lets it, else through it.

With --expect every byte of every file is compared with the sha256 in FILE, which is in the form of
sha256sum and has to name all files of the model.

` + exitHelp,
		Example: `  headstart replay /models/gemma
  (cd /copy && find -type f -printf '%P\0' | xargs -0 sha256sum) > sums
  headstart replay /models/gemma --expect sums --head-start 15s --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(replay.Orders, order) {
				return usageError{fmt.Errorf("--order %s: want %s", order, strings.Join(replay.Orders, ", "))}
			}
			if direct && order != replay.Natural {
				return usageError{errors.New("--direct reads files whole: it has no --order")}
			}
			cfg := replay.Config{Dir: args[0], HeadStart: headStart, Order: order, Direct: direct}
			if expect != "" {
				var err error
				if cfg.Want, err = readSums(expect); err != nil {
					return err
				}
			}
			if !asJSON {
				cfg.Report = func(ph replay.Phase) {
					fmt.Fprintf(p.Stdout, "%-8s %8.3f s  %s\n", ph.Name, ph.Seconds(), bytesOf(ph.Bytes))
				}
			}
			r, err := replay.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(p.Stdout).Encode(r)
			}
			checked := "nothing was compared: no --expect"
			if r.Verified {
				checked = fmt.Sprintf("all %d files are as expected, every byte", len(r.Files))
			}
			_, err = fmt.Fprintf(p.Stdout, "%d tensors in %d files: %s at %s/s, from memory %s/s, stall %.3f s; %s\n",
				r.Tensors, r.Shards, bytesOf(r.Weights), bytesOf(int64(r.Rate)), bytesOf(int64(r.Memory)), r.Stall, checked)
			return err
		},
	}
	cmd.Flags().StringVar(&expect, "expect", "", "`FILE` with the sha256 of every file of the model, as sha256sum writes it")
	cmd.Flags().StringVar(&order, "order", replay.Natural, "`ORDER` of the weights: natural, reverse (another loader's), halves (two ranks that split each file), or pipeline (one of two, which wants its half alone)")
	cmd.Flags().BoolVar(&direct, "direct", false, "read the weights with O_DIRECT, without it where the file system refuses it, and map nothing")
	cmd.Flags().DurationVar(&headStart, "head-start", 0, "time between the headers and the weights; vLLM's imports take 15s to 20s")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func readSums(path string) (map[string]manifest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums, err := replay.ParseSums(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return sums, nil
}
