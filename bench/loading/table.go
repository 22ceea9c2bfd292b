package loading

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/headstart-serving/headstart/bench/score"
)

// Write writes the result for a person.
func (r *Result) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d files, %s; on %s; into %s; load average %s before, %s after\n",
		r.Model, r.Files, score.Bytes(r.Bytes), r.Machine, r.Medium, r.Load, r.LoadEnd)
	fmt.Fprintf(&b, "in parts of %d KiB\n", r.Part>>10)
	if len(r.LeftOut) > 0 {
		fmt.Fprintf(&b, "not measured, for it is not here: %s\n", strings.Join(r.LeftOut, ", "))
	}
	for i := range r.Loads {
		r.Loads[i].write(&b)
	}
	if s := r.Second; s != nil {
		s.write(&b)
	}
	if s := r.Servers; s != nil {
		s.write(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (l *Loads) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s: %s (%s)\n", l.Name, l.Title, runs(l.Rounds))
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  way\trate, MB/s\tCPU-s/GB\treader's\tbucket's\tmemory, MiB\tits own check\tcompared")
	for _, w := range l.Ways {
		if len(w.Runs) == 0 {
			continue // it was ended before
		}
		reader := "-"
		if w.Reader.Max > 0 {
			reader = w.Reader.In("%.2f", 1)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.Name, w.Rate.In("%.0f", 1e6), w.CPU.In("%.2f", 1), reader,
			w.Server.In("%.2f", 1), w.Memory.In("%.0f", 1<<20), w.Checks, w.compared())
	}
	t.Flush()
	if len(l.Starts) > 0 {
		l.writeStarts(b)
	}
	score.WriteGoals(b, l.Goals)
}

func (l *Loads) writeStarts(b *strings.Builder) {
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "  a server's start, reading nothing for %.1f s\tlast weight read, s\tideal, s\tover the ideal, %%\n", l.Starts[0].HeadStart)
	for _, s := range l.Starts {
		if len(s.Runs) == 0 {
			continue
		}
		fmt.Fprintf(t, "  %s\t%s\t%.2f\t%s\n", s.Name, s.Seconds.In("%.2f", 1), s.Ideal, s.Over.In("%.1f", 0.01))
	}
	t.Flush()
}

func (s *Second) write(b *strings.Builder) {
	fmt.Fprintf(b, "\nwarm: a second pod, all is there (%s)\n", runs(s.Rounds))
	fmt.Fprintf(b, "  publish, ms: %s\n", s.Publish.In("%.1f", 1e-3))
	fmt.Fprintf(b, "  whole model by mmap, MB/s: %s; the same as plain files: %s\n", s.Mount.In("%.0f", 1e6), s.Native.In("%.0f", 1e6))
	score.WriteGoals(b, s.Goals)
}

func (s *Servers) write(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s: vLLM, from the load's begin to its first token\n", Serve)
	if n := len(s.Plain.Runs); n > 0 {
		fmt.Fprintf(b, "  on %s: %s s, weights wanted after %.1f s (%s)\n", s.Plain.Name, s.Plain.First.In("%.1f", 1), s.Plain.wanted(), runs(n))
	}
	for _, o := range s.Over {
		fmt.Fprintf(b, "  %s\n", o.title())
		t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "  way\tfirst token, s\tover the plain copy, %\tweights, s\truns")
		for _, x := range o.Starts {
			if len(x.Runs) == 0 {
				continue // it was ended before
			}
			over := "-"
			if len(s.Plain.Runs) > 0 {
				over = x.Over.In("%.1f", 0.01)
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%d\n", x.Name, x.First.In("%.1f", 1), over, x.Late.In("%.1f", 1), len(x.Runs))
		}
		t.Flush()
		score.WriteGoals(b, o.Goals)
	}
}

func (o *ServersOver) title() string {
	return fmt.Sprintf("a transfer of %g s: %s/s, %s/s for a single stream, a round trip of %v", o.Transfer, score.Bytes(o.Link.Total), score.Bytes(o.Link.Stream), o.Link.RoundTrip)
}

func runs(n int) string {
	if n == 1 {
		return "one run"
	}
	return fmt.Sprintf("medians and spreads of %d runs", n)
}

// compared says whether every byte of every run was compared.
func (w *Way) compared() string {
	if slices.ContainsFunc(w.Runs, func(s Sample) bool { return !s.Verified }) {
		return "no"
	}
	return "yes"
}

// line is a run for the progress.
func (s Sample) line() string {
	return fmt.Sprintf("%.2f s, %s/s, %.2f CPU-s/GB, %d MiB", s.Seconds, score.Bytes(int64(s.Rate)), s.CPU, s.Memory>>20)
}
