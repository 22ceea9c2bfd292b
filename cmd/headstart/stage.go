package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
)

func newStageCommand(p process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stage MODEL[@REVISION]",
		Short: "Bring a model from the Hugging Face Hub into a bucket, verified, once",
		Long: `stage streams a model's files from the Hub into the bucket, through memory only. Each file
is checked against the Hub's sha256 (git's sha1 for small ones), and the model is committed by its
manifest, which is written last. Run it again and it goes on where it was, or does nothing.

While it runs, files above 32 MiB are in the bucket a second time, as parts below .headstart/parts/.
A bucket with soft delete (new ones: seven days) goes on charging for parts after they are removed: 55 GB of
weights cost as much as 55 GB do for those days. With versioning they stay as noncurrent objects until
something deletes them, and under a retention policy they stay where they are, which is said. A lifecycle
rule that deletes .headstart/parts/ after a week, noncurrent ones too, or a bucket for models alone without
these, is the remedy.

HF_ENDPOINT, HF_TOKEN, HF_HOME and the other variables of the Hub's own client mean what they mean
there; Google's application default credentials, or STORAGE_EMULATOR_HOST, lead to the bucket.

` + exitHelp,
		Example: `  headstart stage google/gemma-3-27b-it --bucket gs://models
  headstart stage google/gemma-3-4b-it@093f9f388b31de276ce2de164bdc2081324b9767 --bucket gs://models/staging
  headstart stage acme/tuned --bucket file:///mnt/lustre/models --json`,
		Args: cobra.ExactArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print events on stdout, one JSON object a line; the last one is the result")
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
		hub, err := hf.FromEnv(p.Getenv)
		if err != nil {
			return usageError{err}
		}
		hub.Log = p.logger(slog.LevelWarn)
		source, err := hf.New(hub)
		if err != nil {
			return usageError{err}
		}
		store, closeStore, err := openStore(cmd.Context(), p, u)
		if err != nil {
			return err
		}
		defer closeStore()
		var at atomic.Pointer[stager.Event]
		at.Store(&stager.Event{})
		s := stager.New(stager.Config{
			Source: source, Store: store, Log: p.logger(slog.LevelWarn),
			Progress: func(e stager.Event) { at.Store(&e) },
		})
		var r stager.Result
		err = newProgress(p, "staging "+ref.String(), asJSON).During(cmd.Context(),
			func() sample { e := at.Load(); return sample{Done: e.Stored, Total: e.Total} },
			func(ctx context.Context) (err error) { r, err = s.Stage(ctx, ref); return err })
		if err != nil {
			return err
		}
		return p.staged(r, u, asJSON)
	}
	return cmd
}

// staged prints the result of a stage.
func (p process) staged(r stager.Result, u bucketURL, asJSON bool) error {
	m := r.Manifest
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(map[string]any{
			"event": "staged", "model": m.Model.Repo, "commit": m.Model.Commit, "pin": pin(m, r.Sum), "ref": r.Ref,
			"files": len(m.Files), "bytes": m.Size(), "already": r.Already, "fetched": r.Fetched, "reused": r.Reused,
			"seconds": r.Elapsed.Seconds(), "bucket": u.String(),
		})
	}
	what := fmt.Sprintf("staged %s in %s (%s/s)", bytesOf(m.Size()), r.Elapsed.Round(10*time.Millisecond), bytesOf(int64(float64(r.Fetched)/r.Elapsed.Seconds())))
	switch {
	case r.Already:
		what = "nothing to do: it is staged"
	case r.Reused > 0:
		what += fmt.Sprintf(", %s of it were there from an earlier run", bytesOf(r.Reused))
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
