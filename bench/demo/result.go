package demo

import (
	"fmt"
	"time"

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/bench/vllm"
	"github.com/headstart-serving/headstart/stager/hub"
)

// Result is what there is to say. Times are in seconds, rates in bytes per second.
type Result struct {
	Verified bool   `json:"verified"` // every reader compared every byte with the Hub's sha256
	Model    string `json:"model"`
	Commit   string `json:"commit"`
	Files    int    `json:"files"`
	Bytes    int64  `json:"bytes"`
	Road     string `json:"road"`
	Medium   string `json:"medium"` // of the node's cache, or of the directory

	Stage     float64 `json:"stage_s"` // Hub → bucket
	StageRate float64 `json:"stage_rate"`
	First     float64 `json:"first_byte_s"` // from the load's begin to the first verified chunk
	Load      float64 `json:"load_s"`       // bucket → node, verified
	LoadRate  float64 `json:"load_rate"`

	HeadStart float64 `json:"head_start_s"` // that the first reader gave
	Cold      float64 `json:"cold_s"`       // that the first reader needed for config, headers and weights
	ColdRate  float64 `json:"cold_rate"`    // of its weights
	Stall     float64 `json:"stall_s"`      // what of cold_s it would not have needed, had all been in memory; with fetch, load_s too
	Warm      float64 `json:"warm_s"`       // that the second reader needed for the same
	WarmRate  float64 `json:"warm_rate"`

	Readers  []replay.Result `json:"readers"`
	VLLM     *Served         `json:"vllm,omitempty"`
	Curl     *Download       `json:"curl,omitempty"`
	Timeline []Span          `json:"timeline"`
	Total    float64         `json:"total_s"`
}

// Served is what a real vLLM did: once on the model while it loaded, once on a plain copy of its files.
type Served struct {
	Same  bool        `json:"same_tokens"`
	Road  vllm.Result `json:"streamed"`
	Plain vllm.Result `json:"plain"`
}

// Download is another client's way over the first stretch of the node's road: bucket → medium, unchecked.
type Download struct {
	Tool    string  `json:"tool"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"rate"`
}

// Span is one stretch of the timeline, in seconds since the demo began.
type Span struct {
	Name  string  `json:"name"`
	Start float64 `json:"start_s"`
	End   float64 `json:"end_s"`
	Idle  bool    `json:"idle,omitempty"`
}

func (r *Result) describe(repo hub.Repo, files []hub.File, cfg Config) {
	r.Model, r.Commit = repo.Name(), repo.Commit()
	r.HeadStart = cfg.HeadStart.Seconds()
	for _, f := range files {
		r.Files++
		r.Bytes += f.Size
	}
}

// readers fills what the two readers found; with vLLM in the first one's place, there is no first.
func (r *Result) readers(cold, warm replay.Result) {
	r.Warm, r.WarmRate = reading(warm), warm.Rate
	if cold.Began.IsZero() {
		r.Readers = []replay.Result{warm}
		return
	}
	r.Readers = []replay.Result{cold, warm}
	r.Cold, r.ColdRate, r.Stall = reading(cold), cold.Rate, r.Stall+cold.Stall
}

// reading returns how long a reader read before it had everything.
func reading(r replay.Result) float64 {
	return round(r.Phase(replay.Start).Seconds() + r.Phase(replay.Weights).Seconds())
}

// phases puts a reader's phases into the timeline.
func (d *demo) phases(who string, r replay.Result) {
	for _, p := range r.Phases {
		if p.Name == replay.Imports && p.Seconds() < 0.001 {
			continue
		}
		from := d.since(r.Began)
		d.result.Timeline = append(d.result.Timeline, Span{
			Name: who + ": " + p.Name, Start: round(from + p.Start), End: round(from + p.End), Idle: p.Name == replay.Imports,
		})
	}
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

// Duration returns a number of seconds as a time.Duration.
func Duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
