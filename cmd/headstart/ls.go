package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// stagedModel is one line of ls.
type stagedModel struct {
	Model  string   `json:"model"`
	Commit string   `json:"commit"`
	Refs   []string `json:"refs"`
	Files  int      `json:"files"`
	Bytes  int64    `json:"bytes"`
	Pin    string   `json:"pin"`
	Error  string   `json:"error,omitempty"` // what is wrong with the manifest
}

func newLsCommand(p process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [MODEL]",
		Short: "List the models that are staged in the bucket",
		Example: `  headstart ls --bucket gs://models
  headstart ls google/gemma-3-4b-it --bucket gs://models --json`,
		Args: cobra.MaximumNArgs(1),
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a model, one a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		prefix := manifest.Private
		if len(args) == 1 {
			if err := manifest.ValidRepo(args[0]); err != nil {
				return usageError{err}
			}
			prefix += args[0] + "/"
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		source, closeSource, err := openSource(cmd.Context(), u)
		if err != nil {
			return err
		}
		defer closeSource()
		models, err := list(cmd.Context(), source, prefix)
		if err != nil {
			return err
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
		return p.table(models, u, args)
	}
	return cmd
}

func (p process) table(models []stagedModel, u bucketURL, asked []string) error {
	if len(models) == 0 {
		what := "no model"
		if len(asked) > 0 {
			what = "no commit of " + asked[0]
		}
		_, err := fmt.Fprintf(p.Stdout, "%s is staged in %s\n", what, u)
		return err
	}
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tCOMMIT\tREFS\tFILES\tSIZE")
	for _, m := range models {
		if m.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t-\t%s\n", m.Model, m.Commit, strings.Join(m.Refs, ","), m.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", m.Model, m.Commit, strings.Join(m.Refs, ","), m.Files, bytesOf(m.Bytes))
	}
	return w.Flush()
}

// list reads the manifests and refs below prefix. A key that is neither is passed over; a manifest
// that does not parse is listed with what is wrong.
func list(ctx context.Context, source fetch.Source, prefix string) ([]stagedModel, error) {
	models := make(map[manifest.Model]stagedModel)
	refs := make(map[manifest.Model][]string)
	for o, err := range source.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		repo, name, ref := parseKey(o.Key)
		if repo == "" {
			continue
		}
		limit := int64(manifest.MaxSize)
		if ref {
			limit = 100
		}
		data, err := source.Get(ctx, o.Key, limit)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // removed since it was listed
		case errors.Is(err, manifest.ErrInvalid) && !ref: // too long
			models[manifest.Model{Repo: repo, Commit: name}] = stagedModel{Model: repo, Commit: name, Error: err.Error()}
			continue
		case err != nil && !errors.Is(err, manifest.ErrInvalid):
			return nil, err
		}
		if ref {
			m := manifest.Model{Repo: repo, Commit: string(data)}
			refs[m] = append(refs[m], name)
			continue
		}
		id := manifest.Model{Repo: repo, Commit: name}
		models[id] = describe(id, data)
	}
	var all []stagedModel
	for _, id := range slices.SortedFunc(maps.Keys(models), func(a, b manifest.Model) int { return strings.Compare(a.String(), b.String()) }) {
		m := models[id]
		m.Refs = slices.Sorted(slices.Values(refs[id]))
		all = append(all, m)
	}
	return all, nil
}

func describe(id manifest.Model, raw []byte) stagedModel {
	s := stagedModel{Model: id.Repo, Commit: id.Commit}
	m, err := manifest.Parse(raw)
	switch {
	case err != nil:
		s.Error = err.Error()
	case m.Model != id:
		s.Error = "the manifest of " + m.Model.String()
	default:
		s.Files, s.Bytes, s.Pin = len(m.Files), m.Size(), pin(m, manifest.Sum(raw))
	}
	return s
}

// parseKey reads the key of a manifest or a ref; repo is "" where it is neither.
func parseKey(key string) (repo, name string, ref bool) {
	rest, ok := strings.CutPrefix(key, manifest.Private)
	if !ok {
		return "", "", false
	}
	dir, name, ok := cutLast(rest)
	if !ok {
		return "", "", false
	}
	if repo, ok := strings.CutSuffix(dir, "/refs"); ok {
		name, err := url.PathUnescape(name)
		if err != nil || manifest.ValidRepo(repo) != nil || manifest.ValidRevision(name) != nil {
			return "", "", false
		}
		return repo, name, true
	}
	commit, ok := strings.CutSuffix(name, ".json")
	if !ok || !manifest.IsCommit(commit) || manifest.ValidRepo(dir) != nil {
		return "", "", false
	}
	return dir, commit, false
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
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
	bucket := bucketFlag(cmd, p)
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
		source, closeSource, err := openSource(cmd.Context(), u)
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
