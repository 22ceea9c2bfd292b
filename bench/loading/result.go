package loading

import (
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/score"
)

// Result is what was measured. Rates are in bytes a second, processor time in seconds a gigabyte.
type Result struct {
	Model   string   `json:"model"`
	Commit  string   `json:"commit"`
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Machine string   `json:"machine"`
	Medium  string   `json:"medium"`
	Load    string   `json:"load_average_before"` // 1, 5 and 15 minutes
	LoadEnd string   `json:"load_average_after"`
	LeftOut []string `json:"left_out,omitempty"` // peers that are not here
	Part    int64    `json:"part"`               // bytes of a chunk, and of what the peers that can be told ask for at a time
	Loads   []Loads  `json:"loads,omitempty"`    // of the sets cold and links
	Second  *Second  `json:"second_pod,omitempty"`
	Servers *Servers `json:"servers,omitempty"`
}

// Loads is how the ways compare at one network.
type Loads struct {
	Name   string       `json:"name"`
	Title  string       `json:"title"`
	Link   *link.Shape  `json:"link,omitempty"`
	Rounds int          `json:"rounds"`
	Ways   []Way        `json:"ways"`
	Starts []Start      `json:"starts,omitempty"`
	Goals  []score.Goal `json:"goals"`
}

// Way is what one way took.
type Way struct {
	Name   string       `json:"name"`
	Checks string       `json:"checks"`
	Runs   []Sample     `json:"runs"`
	Rate   score.Spread `json:"rate"`
	CPU    score.Spread `json:"cpu_s_per_gb"`
	Reader score.Spread `json:"reader_cpu_s_per_gb"`
	Server score.Spread `json:"server_cpu_s_per_gb"`
	Memory score.Spread `json:"memory_bytes"`
}

// Sample is what one run took.
type Sample struct {
	Seconds  float64 `json:"seconds"` // until every byte is there and can be read
	Rate     float64 `json:"rate"`
	CPU      float64 `json:"cpu_s_per_gb"`        // of the way's processes
	Reader   float64 `json:"reader_cpu_s_per_gb"` // of the process that read the mount; 0 where there is none
	Servers  float64 `json:"server_cpu_s_per_gb"` // of the bucket meanwhile
	Memory   int64   `json:"memory_bytes"`        // of the way's processes, beside files of a tmpfs
	Verified bool    `json:"verified"`            // every byte was compared after the clock had stopped
}

// Start is how a server starts that reads as vLLM does.
type Start struct {
	Name      string       `json:"name"`
	Readers   int          `json:"readers"` // ranks of one server: each reads everything
	HeadStart float64      `json:"head_start_s"`
	Ideal     float64      `json:"ideal_s"` // the head start and the model from memory, or the transfer if that takes longer
	Runs      []float64    `json:"runs_s"`  // from the load's begin until the last weight was read
	Seconds   score.Spread `json:"seconds"`
	Over      score.Spread `json:"over_ideal"` // as a share of the ideal
}

// Second is what a pod pays that comes when all is there.
type Second struct {
	Rounds  int          `json:"rounds"`
	Publish score.Spread `json:"publish_s"`
	Mount   score.Spread `json:"mount_rate"`  // of a walk through mappings of what was published
	Native  score.Spread `json:"native_rate"` // of the same walk through mappings of plain files on the same medium
	Goals   []score.Goal `json:"goals"`
}

// way returns the way of that name, nil when there is none.
func (l *Loads) way(name string) *Way {
	i := slices.IndexFunc(l.Ways, func(w Way) bool { return w.Name == name })
	if i < 0 {
		return nil
	}
	return &l.Ways[i]
}

// gcsfuse returns the fastest of gcsfuse's modes, nil when none was measured.
func (l *Loads) gcsfuse() (best *Way) {
	for i, w := range l.Ways {
		if strings.HasPrefix(w.Name, gcsfuseName) && (best == nil || w.Rate.Median > best.Rate.Median) {
			best = &l.Ways[i]
		}
	}
	return best
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
	w.Reader = of(func(r Sample) float64 { return r.Reader })
	w.Server = of(func(r Sample) float64 { return r.Servers })
	w.Memory = of(func(r Sample) float64 { return float64(r.Memory) })
}

func (s *Start) sum() {
	over := make([]float64, len(s.Runs))
	for i, t := range s.Runs {
		over[i] = t/s.Ideal - 1
	}
	s.Seconds, s.Over = score.Of(slices.Clone(s.Runs)), score.Of(over)
}

// What the project promises (issue 5).
const (
	goalOfLimit     = 0.85
	goalTimesFuse   = 2.5
	goalTimesRclone = 1.5
	goalTimesRunai  = 1.4
	goalCPU         = 0.45 // CPU-seconds a gigabyte
	goalStreaming   = 2    // times gcsfuse
	goalMemory      = 256  // MiB beside the cache
	goalPublish     = 50   // ms
	goalOfNative    = 0.95
	goalOver        = 5 // per cent over the ideal
)

// coldGoals are those of the set cold, as far as both sides were measured.
func coldGoals(l *Loads) (goals []score.Goal) {
	times := func(what string, ours, other *Way, want float64) {
		if ours != nil && other != nil {
			goals = append(goals, score.AtLeast(what, want, ours.Rate.Median/other.Rate.Median))
		}
	}
	node := l.way(nodeName)
	times("node: rate, of the limit's", node, l.way(limitName), goalOfLimit)
	times("node: rate, times that of gcsfuse's best mode", node, l.gcsfuse(), goalTimesFuse)
	times("node: rate, times that of rclone without checksums", node, l.way(rcloneNoName), goalTimesRclone)
	times("node: rate, times that of Run:ai's streamer", node, l.way(runaiName), goalTimesRunai)
	times("reading while it streams: rate, times that of gcsfuse's best mode", l.way(streamName), l.gcsfuse(), goalStreaming)
	return append(goals,
		score.AtMost("node: CPU-s/GB", goalCPU, node.CPU.Median),
		score.AtMost("node: memory beside the cache, MiB", goalMemory, node.Memory.Max/(1<<20)))
}

func linkGoals(l *Loads) (goals []score.Goal) {
	for _, s := range l.Starts {
		if strings.HasPrefix(s.Name, startName) {
			goals = append(goals, score.AtMost(s.Name+": per cent over the ideal", goalOver, 100*s.Over.Median))
		}
	}
	return goals
}

func secondGoals(s *Second) []score.Goal {
	return []score.Goal{
		score.AtMost("second pod: publish, ms", goalPublish, 1e3*s.Publish.Median),
		score.AtLeast("second pod: model by mmap, of a native file's rate", goalOfNative, s.Mount.Median/s.Native.Median),
	}
}
