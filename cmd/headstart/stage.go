package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

func newStageCommand(p process) *cobra.Command {
	var dryRun bool
	var from, addr, file string
	var selection stager.Selection
	memory, chunk := size(512<<20), size(manifest.ChunkSize)
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

While it runs, files above 32 MiB are in the bucket a second time, as parts below .headstart/parts/.
A bucket with soft delete (new ones: seven days) goes on charging for parts after they are removed: 55 GB of
weights cost as much as 55 GB do for those days. With versioning they stay as noncurrent objects until
something deletes them, and under a retention policy they stay where they are, which is said. A lifecycle
rule that deletes .headstart/parts/ after a week, noncurrent ones too, or a bucket for models alone without
these, is the remedy.

HF_ENDPOINT, HF_TOKEN, HF_HOME and the other variables of the Hub's own client mean what they mean
there; Google's application default credentials, or STORAGE_EMULATOR_HOST, lead to the bucket.

SIGTERM and Ctrl-C end it within seconds, in a state that the next run goes on from; a second one
ends it at once.

` + stageEventsHelp + `

` + exitHelp,
		Example: `  headstart stage google/gemma-3-27b-it --bucket gs://models
  headstart stage google/gemma-3-4b-it@093f9f388b31de276ce2de164bdc2081324b9767 --bucket gs://models/staging
  headstart stage google/gemma-3-4b-it --dry-run
  headstart stage acme/tuned --bucket file:///mnt/lustre/models --json
  headstart stage acme/quantized --include '*-Q4_K_M.gguf'
  headstart stage acme/tuned@v2 --from ./output --bucket gs://models
  headstart stage google/gemma-3-4b-it --from gs://models-eu --bucket gs://models-us
  headstart stage acme/tuned --bucket gs://models --metrics :9096 --metrics-file /var/lib/node_exporter/stage.prom`,
		Args: cobra.ExactArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	asJSON := eventsFlag(cmd)
	cmd.Flags().Var(&memory, "memory", "`SIZE` of this process at most, 96MiB or more: three quarters of it are buffers, and more of them are faster where a round trip is long")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be staged, with sizes, and write nothing")
	cmd.Flags().StringVar(&from, "from", "", "stage from a `SOURCE` other than the Hub: a folder's path, or another bucket as gs://NAME[/PREFIX] or file:///DIR")
	cmd.Flags().StringArrayVar(&selection.Include, "include", nil, "take files that match `GLOB` too; may be repeated")
	cmd.Flags().StringArrayVar(&selection.Exclude, "exclude", nil, "leave files out that match `GLOB`; may be repeated")
	cmd.Flags().Var(&chunk, "chunk-size", "`SIZE` of what is checked and fetched at a time, a power of two: bench load makes it fit a network that is scaled down")
	_ = cmd.Flags().MarkHidden("chunk-size") // it exists
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
		buffers, err := stager.Buffers(int64(memory))
		if err != nil {
			return usageError{fmt.Errorf("--memory %s: %w", &memory, err)}
		}
		if err := chunk.ofChunks(); err != nil {
			return usageError{fmt.Errorf("--chunk-size %w", err)}
		}
		keepWithin(int64(memory))
		o := request{ref: ref, from: from, bucket: u, config: stager.Config{Select: selection, Memory: buffers, ChunkSize: int64(chunk)}, asJSON: *asJSON}
		if dryRun {
			return p.plan(cmd.Context(), o)
		}
		seen, err := newObserved(ref.Repo, file)
		if err != nil {
			return err
		}
		var r stager.Result
		err = seen.During(cmd.Context(), p, addr, func(ctx context.Context) (err error) {
			o.config.Metrics = seen.staging
			r, err = p.stage(ctx, o)
			return err
		})
		if err != nil {
			return err
		}
		return p.staged(r, u, *asJSON)
	}
	return cmd
}

// request is what a command line asks for.
type request struct {
	ref    manifest.Reference
	from   string // "" for the Hub
	bucket bucketURL
	config stager.Config // without its adapters
	asJSON bool
}

// stage stages a model and shows how far it is.
func (p process) stage(ctx context.Context, o request) (r stager.Result, err error) {
	w := newWatch()
	if o.asJSON {
		p.Stdout = &lines{w: p.Stdout}
		w.events = p.Stdout
	}
	shown := newProgress(&p, "staging "+o.ref.String(), o.asJSON)
	s, closeAll, err := p.openStager(ctx, o, func(r stager.Retry) { o.config.Metrics.Retried(r); w.Retried(r) })
	if err != nil {
		return r, err
	}
	defer closeAll()
	s.Progress = w.Event
	err = shown.During(ctx, w.Sample, func(ctx context.Context) (err error) { r, err = s.Stage(ctx, o.ref); return err })
	return r, err
}

// plan prints what a stage would do.
func (p process) plan(ctx context.Context, o request) error {
	s, closeAll, err := p.openStager(ctx, o, nil)
	if err != nil {
		return err
	}
	defer closeAll()
	plan, err := s.Plan(ctx, o.ref)
	if err != nil {
		return err
	}
	return p.planned(plan, o.bucket, o.asJSON)
}

// openStager opens what a stager works with; call the function that it returns when done.
func (p process) openStager(ctx context.Context, o request, retrying func(stager.Retry)) (*stager.Stager, func(), error) {
	source, closeSource, err := openFrom(ctx, p, o.from, retrying)
	if err != nil {
		return nil, nil, err
	}
	store, closeStore, err := openStore(ctx, p, o.bucket, retrying)
	if err != nil {
		closeSource()
		return nil, nil, err
	}
	o.config.Source, o.config.Store, o.config.Log = source, store, p.logger(slog.LevelWarn)
	return stager.New(o.config), func() { closeStore(); closeSource() }, nil
}

// staged prints the result of a stage.
func (p process) staged(r stager.Result, u bucketURL, asJSON bool) error {
	m := r.Manifest
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(stagedEvent{
			Event: "staged", Model: m.Model.Repo, Commit: m.Model.Commit, Pin: pin(m, r.Sum), Ref: r.Ref,
			Files: len(m.Files), Bytes: m.Size(), Already: r.Already, Fetched: r.Fetched, Copied: r.Copied, Reused: r.Reused,
			Seconds: r.Elapsed.Seconds(), Bucket: u.String(), Verified: verified(r), Kept: r.Kept.Bytes,
		})
	}
	files := fmt.Sprintf("%d files, %s", len(m.Files), bytesOf(m.Size()))
	elapsed := r.Elapsed.Round(10 * time.Millisecond)
	what := fmt.Sprintf("staged %s, every sha256 verified, in %s (%s/s)", files, elapsed, bytesOf(int64(float64(r.Fetched)/r.Elapsed.Seconds())))
	switch {
	case r.Already:
		what = "nothing to do: it is staged (" + files + ")"
	default:
		if r.Copied > 0 { // the time of a copy says nothing about the rate of the links
			what = fmt.Sprintf("staged %s, in %s; %s were copied in the bucket from another commit, by crc32c, every other sha256 is verified", files, elapsed, bytesOf(r.Copied))
		}
		if r.Reused > 0 {
			what += fmt.Sprintf("; %s were received, %s were there from an earlier run", bytesOf(r.Fetched), bytesOf(r.Reused))
		}
	}
	_, err := fmt.Fprintf(p.Stdout, "%s in %s: %s\npin it as %s\n", m.Model, u, what, pin(m, r.Sum))
	return err
}

// verified names the sums that were compared.
func verified(r stager.Result) string {
	if r.Copied > 0 {
		return "sha256, and crc32c of what was copied in the bucket"
	}
	return "sha256"
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
