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
)

func newStageCommand(p process) *cobra.Command {
	var asJSON, dryRun bool
	var from string
	var selection stager.Selection
	memory := size(512 << 20)
	cmd := &cobra.Command{
		Use:   "stage MODEL[@REVISION]",
		Short: "Bring a model from the Hugging Face Hub into a bucket, verified, once",
		Long: `stage streams a model's files from the Hub into the bucket, through memory only. Each file
is checked against the Hub's sha256 (git's sha1 for small ones), and the model is committed by its
manifest, which is written last. Run it again and it goes on where it was, or does nothing.

Taken is what an inference server needs: safetensors, their index, configuration, tokenizer, processor,
chat template, licence. Left out are weights in other formats (pickle, GGUF, …), the same weights in
another layout (original/, consolidated*), what a training left behind, and pictures; --dry-run lists
them. --include brings files in besides, --exclude takes them out and wins. Patterns are those of the
Hub's own client (fnmatch): * matches / too, and case counts. Without patterns, a model that is staged
stays as it is, whatever it was staged with.

Before the first byte is copied, the header of every safetensors file is checked against the file's
size, and the index against the headers.

--from stages from elsewhere than the Hub. A folder (a fine-tuned model, a LoRA adapter, a snapshot in the
Hub client's cache) gets a commit that names its content; @REVISION then is a name for it, main if none
is given. A bucket's models keep their commit, their manifest and their pin.

HF_ENDPOINT, HF_TOKEN, HF_HOME and the other variables of the Hub's own client mean what they mean
there; Google's application default credentials, or STORAGE_EMULATOR_HOST, lead to the bucket.

` + exitHelp,
		Example: `  headstart stage google/gemma-3-27b-it --bucket gs://models
  headstart stage google/gemma-3-4b-it@093f9f388b31de276ce2de164bdc2081324b9767 --bucket gs://models/staging
  headstart stage google/gemma-3-4b-it --dry-run
  headstart stage acme/tuned --bucket file:///mnt/lustre/models --json
  headstart stage acme/quantized --include '*-Q4_K_M.gguf'
  headstart stage acme/tuned@v2 --from ./output --bucket gs://models
  headstart stage google/gemma-3-4b-it --from gs://models-eu --bucket gs://models-us`,
		Args: cobra.ExactArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().Var(&memory, "memory", "`SIZE` of this process at most, 96MiB or more: three quarters of it are buffers, and more of them are faster where a round trip is long")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print events on stdout, one JSON object a line; the last one is the result")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be staged, with sizes, and write nothing")
	cmd.Flags().StringVar(&from, "from", "", "stage from a `SOURCE` other than the Hub: a folder's path, or another bucket as gs://NAME[/PREFIX] or file:///DIR")
	cmd.Flags().StringArrayVar(&selection.Include, "include", nil, "take files that match `GLOB` too; may be repeated")
	cmd.Flags().StringArrayVar(&selection.Exclude, "exclude", nil, "leave files out that match `GLOB`; may be repeated")
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
		buffers, err := stager.Buffers(int64(memory))
		if err != nil {
			return usageError{fmt.Errorf("--memory %s: %w", &memory, err)}
		}
		keepWithin(int64(memory))
		source, closeSource, err := openFrom(cmd.Context(), p, from)
		if err != nil {
			return err
		}
		defer closeSource()
		store, closeStore, err := openStore(cmd.Context(), p, u)
		if err != nil {
			return err
		}
		defer closeStore()
		var at atomic.Pointer[stager.Event]
		at.Store(&stager.Event{})
		s := stager.New(stager.Config{
			Source: source, Store: store, Log: p.logger(slog.LevelWarn), Select: selection, Memory: buffers,
			Progress: func(e stager.Event) { at.Store(&e) },
		})
		if dryRun {
			plan, err := s.Plan(cmd.Context(), ref)
			if err != nil {
				return err
			}
			return p.planned(plan, u, asJSON)
		}
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
			"files": len(m.Files), "bytes": m.Size(), "already": r.Already, "fetched": r.Fetched, "copied": r.Copied, "reused": r.Reused,
			"seconds": r.Elapsed.Seconds(), "bucket": u.String(),
		})
	}
	what := fmt.Sprintf("staged %s in %s", bytesOf(m.Size()), r.Elapsed.Round(10*time.Millisecond))
	switch {
	case r.Already:
		what = "nothing to do: it is staged"
	default:
		if r.Copied == 0 { // the time of a copy says nothing about the rate of the links
			what += fmt.Sprintf(" (%s/s)", bytesOf(int64(float64(r.Fetched)/r.Elapsed.Seconds())))
		} else {
			what += fmt.Sprintf(", %s of it copied in the bucket from another commit", bytesOf(r.Copied))
		}
		if r.Reused > 0 {
			what += fmt.Sprintf(", %s of it were there from an earlier run", bytesOf(r.Reused))
		}
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
