package staging

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/link"
)

// Result is what was measured. Rates are in bytes a second, processor time in seconds a gigabyte.
type Result struct {
	Model     string     `json:"model"`
	Commit    string     `json:"commit"`
	Files     int        `json:"files"`
	Bytes     int64      `json:"bytes"`
	Machine   string     `json:"machine"`
	Scenarios []Scenario `json:"scenarios"`
}

// Scenario is one comparison.
type Scenario struct {
	Name    string      `json:"name"`
	Title   string      `json:"title"`
	Link    *link.Shape `json:"link,omitempty"`
	Discard bool        `json:"discard,omitempty"`
	Rounds  int         `json:"rounds"`
	Ways    []Way       `json:"ways"`
	Goals   []Goal      `json:"goals"`
}

// Way is what one way took.
type Way struct {
	Name    string   `json:"name"`
	Checks  string   `json:"checks"`
	Runs    []Sample `json:"runs"`
	Rate    Spread   `json:"rate"`
	CPU     Spread   `json:"cpu_s_per_gb"`
	Servers Spread   `json:"servers_cpu_s_per_gb"`
	Memory  Spread   `json:"memory_bytes"`
	Disk    Spread   `json:"disk_bytes"`
}

// Sample is what one run took.
type Sample struct {
	Seconds float64 `json:"seconds"` // from the start of the first process to the end of the last
	Rate    float64 `json:"rate"`
	CPU     float64 `json:"cpu_s_per_gb"`         // of the way's processes
	Servers float64 `json:"servers_cpu_s_per_gb"` // of Hub, bucket and network meanwhile
	Memory  int64   `json:"memory_bytes"`         // at the peak, of all processes of the way that live at one time
	Disk    int64   `json:"disk_bytes"`           // at the peak
}

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

func atLeast(what string, want, got float64) Goal {
	return Goal{What: what, Want: want, Got: got, Reached: got >= want}
}

func atMost(what string, want, got float64) Goal {
	return Goal{What: what, Want: want, Most: true, Got: got, Reached: got <= want}
}

func (r *Result) scenario(name string) *Scenario {
	i := slices.IndexFunc(r.Scenarios, func(s Scenario) bool { return s.Name == name })
	return &r.Scenarios[i]
}

// way returns a way of the scenario, nil when it has none of that name.
func (s *Scenario) way(name string) *Way {
	i := slices.IndexFunc(s.Ways, func(w Way) bool { return w.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Ways[i]
}

// sum fills the spreads from the runs.
func (w *Way) sum() {
	of := func(number func(Sample) float64) Spread {
		all := make([]float64, len(w.Runs))
		for i, r := range w.Runs {
			all[i] = number(r)
		}
		return spread(all)
	}
	w.Rate = of(func(r Sample) float64 { return r.Rate })
	w.CPU = of(func(r Sample) float64 { return r.CPU })
	w.Servers = of(func(r Sample) float64 { return r.Servers })
	w.Memory = of(func(r Sample) float64 { return float64(r.Memory) })
	w.Disk = of(func(r Sample) float64 { return float64(r.Disk) })
}

func spread(all []float64) Spread {
	if len(all) == 0 {
		return Spread{}
	}
	slices.Sort(all)
	n := len(all)
	return Spread{Median: (all[(n-1)/2] + all[n/2]) / 2, Min: all[0], Max: all[n-1]}
}

// machine says what it was measured on.
func machine() string {
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
