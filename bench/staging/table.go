package staging

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/headstart-serving/headstart/bench/score"
)

// Write writes the result for a person.
func (r *Result) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d files, %s; on %s\n", r.Model, r.Files, score.Bytes(r.Bytes), r.Machine)
	for i := range r.Scenarios {
		r.Scenarios[i].write(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Scenario) write(b *strings.Builder) {
	title := s.Title
	if s.Link != nil && s.Link.Total > 0 {
		title += fmt.Sprintf(", %s/s", score.Bytes(s.Link.Total))
	}
	runs := "medians and spreads of " + fmt.Sprint(s.Rounds) + " runs"
	if s.Rounds == 1 {
		runs = "one run"
	}
	fmt.Fprintf(b, "\n%s: %s (%s)\n", s.Name, title, runs)
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  way\trate, MB/s\tCPU-s/GB\tservers' CPU-s/GB\tmemory, MiB\tdisk\tchecked")
	for _, w := range s.Ways {
		disk := score.Bytes(int64(w.Disk.Max))
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.Name, w.Rate.In("%.0f", 1e6), w.CPU.In("%.2f", 1), w.Servers.In("%.2f", 1),
			w.Memory.In("%.0f", 1<<20), disk, w.Checks)
	}
	t.Flush()
	score.WriteGoals(b, s.Goals)
}

// line is a run for the progress.
func (r Sample) line() string {
	return fmt.Sprintf("%.1f s, %s/s, %.2f CPU-s/GB, %d MiB, %s on disk", r.Seconds, score.Bytes(int64(r.Rate)), r.CPU, r.Memory>>20, score.Bytes(r.Disk))
}
