package staging

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Write writes the result for a person.
func (r *Result) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d files, %s; on %s\n", r.Model, r.Files, bytesOf(r.Bytes), r.Machine)
	for i := range r.Scenarios {
		r.Scenarios[i].write(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Scenario) write(b *strings.Builder) {
	title := s.Title
	if s.Link != nil && s.Link.Total > 0 {
		title += fmt.Sprintf(", %s/s", bytesOf(s.Link.Total))
	}
	runs := "medians and spreads of " + fmt.Sprint(s.Rounds) + " runs"
	if s.Rounds == 1 {
		runs = "one run"
	}
	fmt.Fprintf(b, "\n%s: %s (%s)\n", s.Name, title, runs)
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  way\trate, MB/s\tCPU-s/GB\tservers' CPU-s/GB\tmemory, MiB\tdisk\tchecked")
	for _, w := range s.Ways {
		disk := bytesOf(int64(w.Disk.Max))
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.Name, w.Rate.in("%.0f", 1e6), w.CPU.in("%.2f", 1), w.Servers.in("%.2f", 1),
			w.Memory.in("%.0f", 1<<20), disk, w.Checks)
	}
	t.Flush()
	t = tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	for i, g := range s.Goals {
		if i == 0 {
			fmt.Fprintln(t, "  goal\twanted\tmeasured")
		}
		bound, verdict := "at least", "missed"
		if g.Most {
			bound = "at most"
		}
		if g.Reached {
			verdict = "met"
		}
		fmt.Fprintf(t, "  %s\t%s %s\t%s\t%s\n", g.What, bound, number(g.Want), number(g.Got), verdict)
	}
	t.Flush()
}

// in writes "median (min to max)".
func (s Spread) in(format string, unit float64) string {
	median := fmt.Sprintf(format, s.Median/unit)
	least, most := fmt.Sprintf(format, s.Min/unit), fmt.Sprintf(format, s.Max/unit)
	if least == most {
		return median
	}
	return median + " (" + least + " to " + most + ")"
}

// number writes whole numbers, and numbers over 100, without decimals.
func number(v float64) string {
	if v == float64(int64(v)) || v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// line is a run for the progress.
func (r Sample) line() string {
	return fmt.Sprintf("%.1f s, %s/s, %.2f CPU-s/GB, %d MiB, %s on disk", r.Seconds, bytesOf(int64(r.Rate)), r.CPU, r.Memory>>20, bytesOf(r.Disk))
}

// bytesOf writes a number of bytes in decimal units.
func bytesOf(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, u
	}
	if unit == "B" || v >= 99.95 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
