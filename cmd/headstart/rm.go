package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/headstart-serving/headstart/stager/sweep"
)

func newRmCommand(p process) *cobra.Command {
	var all bool
	var r removal
	cmd := &cobra.Command{
		Use:   "rm MODEL[@REVISION|@sha256:PIN]",
		Short: "Remove a staged commit from the bucket, with the refs that name it",
		Long: `rm removes one commit of a model, the one that main names unless another is given, or every
commit with --all. It says what goes, and asks. From the moment when the manifest is gone readers
find nothing, then the objects go. What another manifest names stays, and so does what headstart
has not written. Killed, it goes on when it is run again.

Nodes that have the model keep their copies.`,
		Example: `  headstart rm google/gemma-3-4b-it@v1 --bucket gs://models
  headstart rm google/gemma-3-4b-it --all --dry-run --bucket gs://models
  headstart rm google/gemma-3-4b-it@093f9f388b31de276ce2de164bdc2081324b9767 --yes --json --bucket gs://models`,
		Args: cobra.ExactArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().BoolVar(&all, "all", false, "every commit of the model, and what its stages have left")
	r.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		if all && strings.Contains(args[0], "@") {
			return usageError{fmt.Errorf("--all means every commit of a model: give %s without @%s", ref.Repo, strings.TrimPrefix(args[0], ref.Repo+"@"))}
		}
		return r.run(cmd.Context(), p, bucket, func(ctx context.Context, b sweep.Bucket) (sweep.Plan, error) {
			return sweep.Find(ctx, b, ref, all)
		})
	}
	return cmd
}

func newGcCommand(p process) *cobra.Command {
	var age time.Duration
	var rules sweep.Rules
	var r removal
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove from the bucket what stages that did not end have left",
		Long: `gc removes the parts and the files of commits that were never finished, what a killed rm has
left, and refs of commits that are gone; with --unreferenced also staged commits that no branch or
tag names any more, so that a pin is then all that leads to them. It says what goes, and asks.

Nothing goes for which something was written within the time of --older-than: a stage may be running.
What a manifest names stays, and so does what lies outside the folders MODEL/COMMIT/ of models that
were staged to this bucket. The bytes of a stage that is removed have to be sent again.`,
		Example: `  headstart gc --dry-run --bucket gs://models
  headstart gc --older-than 168h --unreferenced --yes --bucket gs://models`,
		Args: cobra.NoArgs,
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().DurationVar(&age, "older-than", 24*time.Hour, "nothing goes that is younger than `TIME`")
	cmd.Flags().BoolVar(&rules.Unreferenced, "unreferenced", false, "staged commits that no ref names, too")
	r.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if age < 0 {
			return usageError{fmt.Errorf("--older-than %s is negative", age)}
		}
		rules.Before = time.Now().Add(-age)
		return r.run(cmd.Context(), p, bucket, func(ctx context.Context, b sweep.Bucket) (sweep.Plan, error) {
			return sweep.Garbage(ctx, b, rules)
		})
	}
	return cmd
}

// removal is what rm and gc have in common: show, ask, remove.
type removal struct {
	dryRun, yes, asJSON bool
}

func (r *removal) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.dryRun, "dry-run", false, "say what would go, and remove nothing")
	cmd.Flags().BoolVar(&r.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&r.asJSON, "json", false, "print one JSON object for each commit that goes, one a line, and one at the end")
}

func (r *removal) run(ctx context.Context, p process, bucket func() (bucketURL, error), find func(context.Context, sweep.Bucket) (sweep.Plan, error)) error {
	terminal := isTerminal(p.Stdin)
	if !r.yes && !r.dryRun && !terminal {
		return usageError{errors.New("nobody is there to confirm what is removed: give --yes, or --dry-run to see it")}
	}
	u, err := bucket()
	if err != nil {
		return err
	}
	store, closeStore, err := openStore(ctx, p, u, nil)
	if err != nil {
		return err
	}
	defer closeStore()
	plan, err := find(ctx, store)
	if err != nil {
		return err
	}
	if err := r.show(p, plan); err != nil {
		return err
	}
	if len(plan) == 0 || r.dryRun {
		return r.summary(p, u, plan, sweep.Done{Objects: count(plan), Bytes: plan.Bytes()})
	}
	if !r.yes && !p.confirm(fmt.Sprintf("remove %d objects, %s, from %s?", count(plan), bytesOf(plan.Bytes()), u)) {
		return errors.New("not confirmed: nothing is removed")
	}
	var at atomic.Pointer[sweep.Done]
	at.Store(&sweep.Done{})
	var done sweep.Done
	err = newProgress(&p, "removing", false).During(ctx,
		func() sample { return sample{Done: at.Load().Bytes, Total: plan.Bytes()} },
		func(ctx context.Context) (err error) {
			done, err = sweep.Run(ctx, store, plan, func(d sweep.Done) { at.Store(&d) })
			return err
		})
	if err != nil {
		return fmt.Errorf("%d of %d objects are removed: %w", done.Objects, count(plan), err)
	}
	return r.summary(p, u, plan, done)
}

func count(p sweep.Plan) (n int) {
	for _, i := range p {
		n += i.Count()
	}
	return n
}

// show says what the plan names, a line for each commit.
func (r *removal) show(p process, plan sweep.Plan) error {
	if r.asJSON {
		e := json.NewEncoder(p.Stdout)
		for _, i := range plan {
			if err := e.Encode(map[string]any{
				"event": "planned", "model": i.Model.Repo, "commit": i.Model.Commit, "refs": refNames(i),
				"staged": i.Manifest.Key != "", "objects": i.Count(), "bytes": i.Bytes(), "why": i.Why,
			}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(plan) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tCOMMIT\tREFS\tOBJECTS\tSIZE\tWHY")
	for _, i := range plan {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", dash(i.Model.Repo), dash(i.Model.Commit), dash(oneLine(strings.Join(refNames(i), ","))), i.Count(), bytesOf(i.Bytes()), i.Why)
	}
	return w.Flush()
}

func refNames(i sweep.Item) []string {
	names := []string{}
	for _, r := range i.Refs {
		names = append(names, r.Name)
	}
	return names
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (r *removal) summary(p process, u bucketURL, plan sweep.Plan, done sweep.Done) error {
	if r.asJSON {
		return json.NewEncoder(p.Stdout).Encode(map[string]any{
			"event": "removed", "dry_run": r.dryRun, "commits": len(plan), "objects": done.Objects, "bytes": done.Bytes, "bucket": u.String(),
		})
	}
	what := "removed %d objects, %s, from %s\n"
	switch {
	case len(plan) == 0:
		_, err := fmt.Fprintf(p.Stdout, "nothing to remove from %s\n", u)
		return err
	case r.dryRun:
		what = "would remove %d objects, %s, from %s\n"
	}
	_, err := fmt.Fprintf(p.Stdout, what, done.Objects, bytesOf(done.Bytes), u)
	return err
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks on stderr, and takes y or yes for a yes.
func (p process) confirm(question string) bool {
	fmt.Fprint(p.Stderr, question, " [y/N] ")
	answer, _ := bufio.NewReader(p.Stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}
