package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
)

func newStageCommand(p process) *cobra.Command {
	var addr, file string
	cmd := &cobra.Command{
		Use:   "stage MODEL[@REVISION]",
		Short: "Bring a model from the Hugging Face Hub into a bucket, verified, once",
		Long: `stage streams a model's files from the Hub into the bucket, through memory only. Each file
is checked against the Hub's sha256 (git's sha1 for small ones), and the model is committed by its
manifest, which is written last. Run it again and it goes on where it was, or does nothing.

HF_ENDPOINT, HF_TOKEN, HF_HOME and the other variables of the Hub's own client mean what they mean
there; Google's application default credentials, or STORAGE_EMULATOR_HOST, lead to the bucket.

SIGTERM and Ctrl-C end it within seconds, in a state that the next run goes on from; a second one
ends it at once.

` + stageEventsHelp + `

` + exitHelp,
		Example: `  headstart stage google/gemma-3-27b-it --bucket gs://models
  headstart stage google/gemma-3-4b-it@093f9f388b31de276ce2de164bdc2081324b9767 --bucket gs://models/staging
  headstart stage acme/tuned --bucket file:///mnt/lustre/models --json
  headstart stage acme/tuned --bucket gs://models --metrics :9096 --metrics-file /var/lib/node_exporter/stage.prom`,
		Args: cobra.ExactArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	asJSON := eventsFlag(cmd)
	cmd.Flags().StringVar(&addr, "metrics", "", "serve /metrics and /healthz at `HOST:PORT` while it runs; port 0 takes a free one")
	cmd.Flags().StringVar(&file, "metrics-file", "", "write the metrics to `PATH` at the end, for node_exporter's textfile collector (*.prom)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		if ref.Pin != (manifest.Digest{}) {
			return usageError{fmt.Errorf("%s: a pin names a manifest that is staged already: give a branch, a tag or a commit", args[0])}
		}
		seen, err := newObserved(ref.Repo, file)
		if err != nil {
			return err
		}
		var r stager.Result
		err = seen.During(cmd.Context(), p, addr, func(ctx context.Context) (err error) {
			r, err = p.stage(ctx, ref, u, seen.staging, *asJSON)
			return err
		})
		if err != nil {
			return err
		}
		return p.staged(r, u, *asJSON)
	}
	return cmd
}

// stage stages a model and shows how far it is.
func (p process) stage(ctx context.Context, ref manifest.Reference, u bucketURL, metrics *stager.Metrics, asJSON bool) (r stager.Result, err error) {
	w := newWatch()
	if asJSON {
		p.Stdout = &lines{w: p.Stdout}
		w.events = p.Stdout
	}
	shown := newProgress(&p, "staging "+ref.String(), asJSON)
	retrying := func(r stager.Retry) { metrics.Retried(r); w.Retried(r) }
	source, err := openHub(p, retrying)
	if err != nil {
		return r, err
	}
	store, closeStore, err := openStore(ctx, p, u, retrying)
	if err != nil {
		return r, err
	}
	defer closeStore()
	s := stager.New(stager.Config{Source: source, Store: store, Log: p.logger(slog.LevelWarn), Progress: w.Event, Metrics: metrics})
	err = shown.During(ctx, w.Sample, func(ctx context.Context) (err error) { r, err = s.Stage(ctx, ref); return err })
	return r, err
}

// openHub opens the Hub that the environment names.
func openHub(p process, retrying func(stager.Retry)) (stager.Source, error) {
	c, err := hf.FromEnv(p.Getenv)
	if err == nil {
		c.Log, c.Retrying = p.logger(slog.LevelWarn), retrying
		var source *hf.Source
		if source, err = hf.New(c); err == nil {
			return source, nil
		}
	}
	if errors.Is(err, fs.ErrPermission) { // a token that is none
		return nil, err
	}
	return nil, usageError{err}
}

// staged prints the result of a stage.
func (p process) staged(r stager.Result, u bucketURL, asJSON bool) error {
	m := r.Manifest
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(stagedEvent{
			Event: "staged", Model: m.Model.Repo, Commit: m.Model.Commit, Pin: pin(m, r.Sum), Ref: r.Ref,
			Files: len(m.Files), Bytes: m.Size(), Already: r.Already, Fetched: r.Fetched, Reused: r.Reused,
			Seconds: r.Elapsed.Seconds(), Bucket: u.String(), Verified: "sha256",
		})
	}
	files := fmt.Sprintf("%d files, %s", len(m.Files), bytesOf(m.Size()))
	what := fmt.Sprintf("staged %s, every sha256 verified, in %s (%s/s)", files, r.Elapsed.Round(10*time.Millisecond), bytesOf(int64(float64(r.Fetched)/r.Elapsed.Seconds())))
	switch {
	case r.Already:
		what = "nothing to do: it is staged (" + files + ")"
	case r.Reused > 0:
		what += fmt.Sprintf("; %s were received, %s were there from an earlier run", bytesOf(r.Fetched), bytesOf(r.Reused))
	}
	_, err := fmt.Fprintf(p.Stdout, "%s in %s: %s\npin it as %s\n", m.Model, u, what, pin(m, r.Sum))
	return err
}

// pin is the reference that gives exactly this manifest or an error.
func pin(m *manifest.Manifest, sum manifest.Digest) string {
	return manifest.Reference{Repo: m.Model.Repo, Pin: sum}.String()
}

// parseReference reads the MODEL of a command line.
func parseReference(s string) (manifest.Reference, error) {
	ref, err := manifest.ParseReference(s)
	if err != nil {
		return ref, usageError{err}
	}
	return ref, nil
}
