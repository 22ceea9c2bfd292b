package loader

import (
	"cmp"
	"slices"
	"time"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/modelfs"
)

// Progress is how far a model is on this node.
type Progress struct {
	Model    string  `json:"model"` // repo@commit
	Size     int64   `json:"bytes"`
	Verified int64   `json:"verified_bytes"`
	Fetched  int64   `json:"fetched_bytes"`           // by the load that runs, or the last one
	Source   string  `json:"source,omitempty"`        // of that load
	Rate     float64 `json:"bytes_per_second"`        // of that load so far
	Recent   float64 `json:"recent_bytes_per_second"` // of that load in its last seconds
	ETA      float64 `json:"eta_seconds"`             // 0 where nobody knows
	Elapsed  float64 `json:"elapsed_seconds"`         // of that load
	First    float64 `json:"first_chunk_seconds"`     // from that load's start to its first chunk
	InFlight int     `json:"chunks_in_flight"`
	Learnt   int     `json:"learnt_chunks"`        // whose place in that load's order was learnt from readers
	Waiting  int     `json:"waiting_readers"`      // reads that wait for a chunk now
	Wanted   string  `json:"waited_for,omitempty"` // one of those chunks, as "path at offset"
	Stalls   int     `json:"stalls"`               // stretches of time in which at least one read waited
	Stalled  float64 `json:"stalled_seconds"`      // their length together
	Refetch  int     `json:"refetches"`            // attempts that failed and were made again
	State    string  `json:"state"`                // complete, loading, failed or partial
	Reason   string  `json:"reason,omitempty"`     // what the load waits for, or why it failed
	// LongestWait is nil where no reader waits.
	LongestWait *LongestWait `json:"longest_wait,omitempty"`
}

// EntryStatus is one model of the node.
type EntryStatus struct {
	Progress
	Entry  string     `json:"entry"`
	Sum    string     `json:"sum"`
	Dir    string     `json:"dir"`
	Leases int        `json:"leases"`
	Users  int        `json:"users"` // leases and calls that wait for it
	Used   time.Time  `json:"used"`
	Medium cache.Kind `json:"medium"`
	Why    string     `json:"medium_reason,omitempty"`   // why it lies there, if this process chose that
	Huge   int64      `json:"huge_page_bytes,omitempty"` // that it got in memory, if this process made it
	// Copy is what the disk has of a model in memory; nil where it is not to have any.
	Copy *CopyStatus `json:"copy,omitempty"`
}

// LeaseStatus is one target that shows a model.
type LeaseStatus struct {
	Target string    `json:"target"`
	Model  string    `json:"model"`
	Ref    string    `json:"ref"`
	Mode   Mode      `json:"mode"`
	Layout Layout    `json:"layout"`
	Since  time.Time `json:"since"`
}

// Status is what a node has and does.
type Status struct {
	Dir         string           `json:"dir"`
	Passthrough string           `json:"passthrough"` // "unknown" until a model was shown while it loaded
	Media       []MediumStatus   `json:"media"`
	Cached      map[string]int64 `json:"cache_bytes"` // by state: leased, idle, loading, partial, copy
	Entries     []EntryStatus    `json:"entries"`
	Leases      []LeaseStatus    `json:"leases"`
	Served      int64            `json:"served_bytes"` // read through this process, not around it
	// Since the node began its worker was replaced so often; of its last death this process has taken
	// over so many mounts, on which so many requests of readers waited.
	Restarts int   `json:"worker_restarts"`
	Mounts   int   `json:"mounts_taken_over"`
	Requests int64 `json:"requests_taken_over"`
}

// Status returns a snapshot.
func (l *Loader) Status() Status {
	s := Status{Dir: l.cfg.Cache.Dir(), Media: l.media(), Cached: l.cached(), Entries: []EntryStatus{}, Leases: []LeaseStatus{}, Restarts: l.cfg.Restarts}
	for _, e := range l.cfg.Cache.Entries() {
		l.mu.Lock()
		m := l.model(e.Manifest(), e.Raw())
		one := EntryStatus{Entry: e.ID(), Sum: e.Sum().String(), Dir: e.Dir(), Users: m.users, Used: touched(e), Medium: e.Place().Kind(), Why: m.medium, Huge: e.HugeBytes()}
		l.mu.Unlock()
		one.Copy = l.copyStatus(e)
		one.Progress = m.progress()
		one.Verified = e.Bytes()
		if one.State == "partial" && e.Complete() {
			one.State = "complete"
		}
		s.Entries = append(s.Entries, one)
	}
	l.mu.Lock()
	for _, le := range l.byPath {
		s.Leases = append(s.Leases, LeaseStatus{Target: le.Target, Model: le.Model, Ref: le.Ref, Mode: le.Mode, Layout: le.Layout, Since: le.Since})
		i := slices.IndexFunc(s.Entries, func(e EntryStatus) bool { return e.Entry == le.Entry })
		if i >= 0 {
			s.Entries[i].Leases++
		}
	}
	l.mu.Unlock()
	// What the mounts did comes after the leases: who sees one of those sees its mount.
	served := l.served()
	s.Served, s.Requests, s.Mounts, s.Passthrough = served.Bytes, served.Taken, l.takenOver(), l.passthrough()
	slices.SortFunc(s.Leases, func(a, b LeaseStatus) int { return cmp.Compare(a.Target, b.Target) })
	return s
}

// progress describes the model's load.
func (m *model) progress() Progress {
	m.loader.mu.Lock()
	entry, load := m.entry, m.load
	m.loader.mu.Unlock()
	p := Progress{Model: m.m.Model.String(), Size: m.m.Size(), State: "partial", LongestWait: m.longestWait()}
	if entry != nil {
		p.Verified = entry.Bytes()
		if entry.Complete() {
			p.State = "complete"
		}
	}
	if load == nil {
		return p
	}
	f := load.Progress()
	p.Fetched, p.InFlight, p.Waiting, p.Stalled, p.Refetch, p.Reason = f.Fetched, f.InFlight, f.Waiting, f.Stalled.Seconds(), f.Refetches, f.Reason
	p.Source, p.Recent, p.Learnt, p.Wanted, p.Stalls = f.Source, f.Recent, f.Learnt, f.Wanted, f.Stalls
	end := f.Ended
	if end.IsZero() {
		end = time.Now()
	}
	p.Elapsed = end.Sub(f.Started).Seconds()
	if !f.First.IsZero() {
		p.First = f.First.Sub(f.Started).Seconds()
	}
	if p.Elapsed > 0 {
		p.Rate = float64(f.Fetched) / p.Elapsed
	}
	switch err := load.Err(); {
	case p.State == "complete":
	case err != nil:
		p.State, p.Reason = "failed", err.Error()
	case f.Ended.IsZero():
		p.State = "loading"
		if p.Recent > 0 {
			p.ETA = float64(p.Size-p.Verified) / p.Recent
		}
	}
	return p
}

// passthrough says whether complete files of mounts that stream are read around this process.
func (l *Loader) passthrough() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	answer := "unknown"
	for f := range l.shown {
		if !f.Passthrough() {
			return "no"
		}
		answer = "yes"
	}
	return answer
}

// served adds up what this process's mounts did.
func (l *Loader) served() modelfs.Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.past
	for f := range l.shown {
		s = add(s, f.Stats())
	}
	return s
}

func add(a, b modelfs.Stats) modelfs.Stats {
	return modelfs.Stats{ServedOpens: a.ServedOpens + b.ServedOpens, PassthroughOpens: a.PassthroughOpens + b.PassthroughOpens, Reads: a.Reads + b.Reads,
		Bytes: a.Bytes + b.Bytes, Waiting: a.Waiting + b.Waiting, Waited: a.Waited + b.Waited, Failed: a.Failed + b.Failed, Taken: a.Taken + b.Taken}
}
