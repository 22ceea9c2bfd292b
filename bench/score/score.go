// Package score is how the benchmarks say what they measured: medians with their spread, promises beside
// what came of them, and the machine it was on.
package score

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Spread is what several runs took.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Goal is what was promised, and what was measured.
type Goal struct {
	What    string  `json:"what"`
	Want    float64 `json:"want"`
	Most    bool    `json:"most,omitempty"` // want is the most that it may be, not the least
	Got     float64 `json:"got"`
	Reached bool    `json:"reached"`
}

// AtLeast is a promise of no less than want.
func AtLeast(what string, want, got float64) Goal {
	return Goal{What: what, Want: want, Got: got, Reached: got >= want}
}

// AtMost is a promise of no more than want.
func AtMost(what string, want, got float64) Goal {
	return Goal{What: what, Want: want, Most: true, Got: got, Reached: got <= want}
}

// Of returns the spread of all; it sorts them.
func Of(all []float64) Spread {
	if len(all) == 0 {
		return Spread{}
	}
	slices.Sort(all)
	n := len(all)
	return Spread{Median: (all[(n-1)/2] + all[n/2]) / 2, Min: all[0], Max: all[n-1]}
}

// Machine says what it was measured on.
func Machine() string {
	parts := []string{fmt.Sprintf("%d processors", runtime.NumCPU())}
	if name := procField("/proc/cpuinfo", "model name"); name != "" {
		parts = append(parts, name)
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		parts = append(parts, fmt.Sprintf("%.0f GiB", float64(info.Totalram)*float64(info.Unit)/(1<<30)))
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		parts = append(parts, "Linux "+unix.ByteSliceToString(uts.Release[:]))
	}
	return strings.Join(parts, ", ")
}

// procField returns the value of the first line "NAME : VALUE", or "".
func procField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// In writes "median (min to max)".
func (s Spread) In(format string, unit float64) string {
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

// WriteGoals writes what was promised and what came of it, a line each.
func WriteGoals(w io.Writer, goals []Goal) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for i, g := range goals {
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

// Bytes writes a number of bytes in decimal units.
func Bytes(n int64) string {
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
