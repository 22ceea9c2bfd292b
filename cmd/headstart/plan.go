package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/headstart-serving/headstart/stager"
)

// plannedFile is a file in the JSON of a plan.
type plannedFile struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	There int64  `json:"there,omitempty"` // bytes that the bucket has already
	Copy  bool   `json:"copy,omitempty"`  // it would be copied inside the bucket
	Why   string `json:"why,omitempty"`   // it is left out
}

// planned prints what a stage would do.
func (p process) planned(plan stager.Plan, u bucketURL, asJSON bool) error {
	size, there, copied := plan.Total()
	fetch := size - there - copied
	if asJSON {
		files, left := make([]plannedFile, len(plan.Files)), make([]plannedFile, len(plan.Left))
		for i, f := range plan.Files {
			files[i] = plannedFile{Path: f.Path, Bytes: f.Size, There: f.There, Copy: f.Copy}
		}
		for i, f := range plan.Left {
			left[i] = plannedFile{Path: f.Path, Bytes: f.Size, Why: f.Why}
		}
		return json.NewEncoder(p.Stdout).Encode(map[string]any{
			"event": "plan", "model": plan.Model.Repo, "commit": plan.Model.Commit, "ref": plan.Ref, "already": plan.Already,
			"files": files, "left_out": left, "odd": append([]string{}, plan.Odd...), "bytes": size, "there": there, "copy": copied, "fetch": fetch,
			"bucket": u.String(),
		})
	}
	what := fmt.Sprintf("would stage %s in %d files: %s to fetch", bytesOf(size), len(plan.Files), bytesOf(fetch))
	switch {
	case plan.Already:
		what = fmt.Sprintf("nothing to do: it is staged, %s in %d files", bytesOf(size), len(plan.Files))
	default:
		if copied > 0 {
			what += fmt.Sprintf(", %s to copy from another commit", bytesOf(copied))
		}
		if there > 0 {
			what += fmt.Sprintf(", %s are there from an earlier run", bytesOf(there))
		}
	}
	fmt.Fprintf(p.Stdout, "%s in %s: %s\n\n", plan.Model, u, what)
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FILE\tSIZE\t")
	for _, f := range plan.Files {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Path, bytesOf(f.Size), state(f))
	}
	for _, f := range plan.Left {
		fmt.Fprintf(w, "%s\t%s\tleft out: %s\n", f.Path, bytesOf(f.Size), f.Why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, odd := range plan.Odd {
		if _, err := fmt.Fprintln(p.Stdout, "odd:", odd); err != nil {
			return err
		}
	}
	return nil
}

func state(f stager.PlannedFile) string {
	switch {
	case f.Copy:
		return "to copy from another commit"
	case f.There == f.Size && f.Size > 0:
		return "there"
	case f.There > 0:
		return bytesOf(f.There) + " there"
	}
	return "to fetch"
}
