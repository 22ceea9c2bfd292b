package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
)

func newStatusCommand(p process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is on this node: models, loads, what is published where",
		Long: `status shows what the node's cache holds and what is shown where, and for each load how fast it
is (RATE, in its last seconds), how long it will take (LEFT), how long readers could not go on for want of
bytes (STALLED), and in words what is waited for. MEDIUM is memory+disk for a model in memory of which the
disk has a copy.`,
		Example: `  headstart status
  headstart status --json | jq .entries`,
		Args: cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		node := control.Dial(*socket)
		defer node.Close()
		s, err := node.Status(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(p.Stdout).Encode(s)
		}
		return writeStatus(p.Stdout, s)
	}
	return cmd
}

// writeStatus writes a status for a person: a line about the node, a table of models, a sentence about
// each that does not just go well, and a table of targets.
func writeStatus(out io.Writer, s loader.Status) error {
	fmt.Fprintf(out, "cache %s: %s; passthrough %s%s\n", s.Dir, inCache(s), passthrough(s), restarts(s.Restarts))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	writeMedia(w, s)
	if len(s.Entries) > 0 {
		fmt.Fprintln(w, "\nMODEL\tSTATE\tVERIFIED\tOF\tRATE\tLEFT\tLEASES\tWAITING\tSTALLED\tMEDIUM\tSOURCE")
	}
	for _, e := range s.Entries {
		rate, left := "-", "-"
		if e.State == "loading" {
			rate = bytesOf(int64(e.Recent)) + "/s"
			if e.ETA > 0 {
				left = max(time.Second, time.Duration(e.ETA*float64(time.Second))).Round(time.Second).String()
			}
		}
		stalled := "-"
		if e.Stalls > 0 {
			stalled = fmt.Sprintf("%.1fs", e.Stalled)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", e.Model, e.State, bytesOf(e.Verified), bytesOf(e.Size), rate, left, e.Leases, e.Waiting, stalled, dash(medium(e)), dash(e.Source))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	sentences(out, s.Entries)
	if len(s.Leases) > 0 {
		fmt.Fprintln(w, "\nTARGET\tMODEL\tMODE\tSINCE")
	}
	for _, l := range s.Leases {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Target, l.Model, l.Mode, l.Since.Format(time.RFC3339))
	}
	return w.Flush()
}

// passthrough says what it means that the kernel reads around the node, or does not.
func passthrough(s loader.Status) string {
	if s.Passthrough != "no" {
		return s.Passthrough
	}
	return "no: models that were published while they loaded are read by way of the node, slower, until they are published again (Linux 6.9 or newer, as root in the first user namespace, on a cache that is not an overlay, does better)"
}

// restarts says how often the node's worker died.
func restarts(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "; its worker died once and was started again"
	}
	return fmt.Sprintf("; its worker died %d times and was started again", n)
}

// medium says where all of a model is.
func medium(e loader.EntryStatus) string {
	if e.Copy != nil && e.Copy.State == "complete" {
		return string(e.Medium) + "+disk"
	}
	return string(e.Medium)
}

// inCache sums up what the cache holds.
func inCache(s loader.Status) string {
	if len(s.Entries) == 0 {
		return "empty"
	}
	var parts []string
	for _, state := range []string{"leased", "idle", "loading", "partial"} {
		if n := s.Cached[state]; n > 0 {
			parts = append(parts, bytesOf(n)+" "+state)
		}
	}
	if n := s.Cached["copy"]; n > 0 {
		parts = append(parts, bytesOf(n)+" of copies on the disk")
	}
	models := "models"
	if len(s.Entries) == 1 {
		models = "model"
	}
	return fmt.Sprintf("%d %s, %s", len(s.Entries), models, strings.Join(parts, ", "))
}

// sentences says what is waited for.
func sentences(out io.Writer, entries []loader.EntryStatus) {
	first := true
	for _, e := range entries {
		text := strings.Join(slices.DeleteFunc([]string{sentence(e.Progress), copySentence(e)}, func(s string) bool { return s == "" }), "; ")
		if text == "" {
			continue
		}
		if first {
			fmt.Fprintln(out)
		}
		first = false
		fmt.Fprintf(out, "%s: %s\n", e.Model, text)
	}
}

// copySentence says what of a model in memory is on the disk.
func copySentence(e loader.EntryStatus) string {
	c := e.Copy
	switch {
	case c == nil || c.State == "complete":
		return ""
	case c.State == "failed":
		return "the disk has no copy of it: " + oneLine(c.Reason)
	}
	return fmt.Sprintf("the disk has a copy of %s of it (%s)", bytesOf(c.Verified), c.State)
}

func sentence(p loader.Progress) string {
	var parts []string
	switch w := p.LongestWait; {
	case w != nil:
		since := time.Duration(w.Seconds * float64(time.Second)).Round(100 * time.Millisecond)
		parts = append(parts, fmt.Sprintf("%d reads wait, one for %s at %d since %s: %s", p.Waiting, oneLine(w.File), w.Offset, since, oneLine(w.Reason)))
	case p.Wanted != "":
		parts = append(parts, fmt.Sprintf("%d reads wait, one for %s", p.Waiting, oneLine(p.Wanted)))
	}
	if p.State != "complete" {
		if w := p.LongestWait; p.Reason != "" && (w == nil || !strings.Contains(w.Reason, p.Reason)) {
			parts = append(parts, oneLine(p.Reason))
		}
		if p.Refetch > 0 {
			parts = append(parts, fmt.Sprintf("%d chunks were fetched again", p.Refetch))
		}
		if p.State == "loading" && p.Learnt > 0 {
			parts = append(parts, fmt.Sprintf("in an order that was learnt (%d chunks)", p.Learnt))
		}
	}
	return strings.Join(parts, "; ")
}
