package staging

import (
	"slices"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/score"
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
	Name    string       `json:"name"`
	Title   string       `json:"title"`
	Link    *link.Shape  `json:"link,omitempty"`
	Discard bool         `json:"discard,omitempty"`
	Rounds  int          `json:"rounds"`
	Ways    []Way        `json:"ways"`
	Goals   []score.Goal `json:"goals"`
}

// Way is what one way took.
type Way struct {
	Name    string       `json:"name"`
	Checks  string       `json:"checks"`
	Runs    []Sample     `json:"runs"`
	Rate    score.Spread `json:"rate"`
	CPU     score.Spread `json:"cpu_s_per_gb"`
	Servers score.Spread `json:"servers_cpu_s_per_gb"`
	Memory  score.Spread `json:"memory_bytes"`
	Disk    score.Spread `json:"disk_bytes"`
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
	of := func(number func(Sample) float64) score.Spread {
		all := make([]float64, len(w.Runs))
		for i, r := range w.Runs {
			all[i] = number(r)
		}
		return score.Of(all)
	}
	w.Rate = of(func(r Sample) float64 { return r.Rate })
	w.CPU = of(func(r Sample) float64 { return r.CPU })
	w.Servers = of(func(r Sample) float64 { return r.Servers })
	w.Memory = of(func(r Sample) float64 { return float64(r.Memory) })
	w.Disk = of(func(r Sample) float64 { return float64(r.Disk) })
}
