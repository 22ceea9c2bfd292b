package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// stagedModel is one line of ls.
type stagedModel struct {
	Model  string    `json:"model"`
	Commit string    `json:"commit"`
	State  string    `json:"state"` // staged, unfinished or damaged
	Refs   []string  `json:"refs"`
	Files  int       `json:"files"`
	Bytes  int64     `json:"bytes"` // of the model; of an unfinished one those that are in the bucket
	Time   time.Time `json:"time"`  // when it was staged; of an unfinished one when something was last written
	Pin    string    `json:"pin,omitempty"`
	Error  string    `json:"error,omitempty"` // what is wrong with the manifest
}

func newLsCommand(p process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [MODEL]",
		Short: "List the models that are staged in the bucket",
		Long: `ls lists the commits of all models, or of one: the refs that name them, their files, their size and
how long ago they were staged. What a stage has left that did not end, or is still running, is listed
as unfinished, with the bytes that it holds and when the last of them was written: run
headstart stage again to go on with it, or headstart gc to remove it.`,
		Example: `  headstart ls --bucket gs://models
  headstart ls google/gemma-3-4b-it --bucket gs://models --json`,
		Args: cobra.MaximumNArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a commit, one a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		repo := ""
		if len(args) == 1 {
			repo = args[0]
			if err := manifest.ValidRepo(repo); err != nil {
				return usageError{err}
			}
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		store, closeStore, err := openStore(cmd.Context(), p, u, nil)
		if err != nil {
			return err
		}
		defer closeStore()
		found, err := inventory.Read(cmd.Context(), store, repo)
		if err != nil {
			return err
		}
		var models []stagedModel
		for _, c := range found.Commits {
			models = append(models, describe(c))
		}
		if asJSON {
			e := json.NewEncoder(p.Stdout)
			for _, m := range models {
				if err := e.Encode(m); err != nil {
					return err
				}
			}
			return nil
		}
		return p.table(models, u, repo)
	}
	return cmd
}

func (p process) table(models []stagedModel, u bucketURL, repo string) error {
	if len(models) == 0 {
		what := "no model"
		if repo != "" {
			what = "no commit of " + repo
		}
		_, err := fmt.Fprintf(p.Stdout, "%s is staged in %s\n", what, u)
		return err
	}
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tCOMMIT\tREFS\tFILES\tSIZE\tAGE")
	for _, m := range models {
		files, size := fmt.Sprint(m.Files), bytesOf(m.Bytes)
		switch {
		case m.Error != "":
			files, size = "damaged", oneLine(m.Error)
		case m.State == unfinished:
			files = unfinished
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Model, m.Commit, dash(oneLine(strings.Join(m.Refs, ","))), files, size, age(time.Since(m.Time)))
	}
	return w.Flush()
}

const unfinished = "unfinished"

func describe(c *inventory.Commit) stagedModel {
	s := stagedModel{Model: c.Model.Repo, Commit: c.Model.Commit, State: "staged", Refs: []string{}, Time: c.Changed().UTC()}
	for _, r := range c.Refs {
		s.Refs = append(s.Refs, r.Name)
	}
	switch {
	case c.Err != nil:
		s.State, s.Error = "damaged", c.Err.Error()
	case !c.Staged():
		s.State, s.Files, s.Bytes = unfinished, len(c.Objects), c.Held()
	default:
		s.Files, s.Bytes, s.Pin = len(c.Manifest.Files), c.Manifest.Size(), pin(c.Manifest, c.Sum)
	}
	return s
}

// age writes a duration in its largest unit. Clocks differ: what is younger than nothing is new.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func newShowCommand(p process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show MODEL[@REVISION|@sha256:PIN]",
		Short: "Show a staged model: its commit, its pin, its files and their checksums",
		Example: `  headstart show google/gemma-3-4b-it --bucket gs://models
  headstart show google/gemma-3-4b-it --bucket gs://models --json | sha256sum   # the pin`,
		Args: cobra.ExactArgs(1),
	}
	bucket := sourceFlags(cmd, p)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the manifest itself, byte for byte")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		source, closeSource, err := openSource(cmd.Context(), u, p.logger(slog.LevelWarn))
		if err != nil {
			return err
		}
		defer closeSource()
		m, raw, err := fetch.Resolve(cmd.Context(), source, ref)
		if err != nil {
			return err
		}
		if asJSON {
			_, err := p.Stdout.Write(raw)
			return err
		}
		fmt.Fprintf(p.Stdout, "model   %s\ncommit  %s\npin     %s\nbucket  %s\nsize    %s in %d files, chunks of %d MiB\n\n",
			m.Model.Repo, m.Model.Commit, pin(m, manifest.Sum(raw)), u, bytesOf(m.Size()), len(m.Files), m.ChunkSize>>20)
		w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "FILE\tBYTES\tCRC32C\tSHA256")
		for i := range m.Files {
			f := &m.Files[i]
			fmt.Fprintf(w, "%s\t%d\t%08x\t%s\n", f.Path, f.Size, f.CRC32C, f.SHA256)
		}
		return w.Flush()
	}
	return cmd
}
