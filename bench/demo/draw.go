package demo

import (
	"fmt"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/bench/timeline"
)

// Rows returns the timeline: one row a span, and a heading for each reader.
func (r *Result) Rows() []timeline.Row {
	spans := slices.Clone(r.Timeline)
	slices.SortStableFunc(spans, func(a, b Span) int { return compareSpans(r, a, b) })
	var rows []timeline.Row
	heading := ""
	for _, s := range spans {
		who, phase, ok := strings.Cut(s.Name, ": ")
		label := s.Name
		if ok {
			if who != heading {
				rows = append(rows, timeline.Row{Label: who})
			}
			heading, label = who, "  "+phase
		}
		rows = append(rows, timeline.Row{
			Label: label, Note: r.note(s),
			Spans: []timeline.Span{{Start: Duration(s.Start), End: Duration(s.End), Idle: s.Idle}},
		})
	}
	return rows
}

// compareSpans keeps the spans of one reader together and orders groups by when they began.
func compareSpans(r *Result, a, b Span) int {
	x, y := r.groupBegan(a), r.groupBegan(b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func (r *Result) groupBegan(s Span) float64 {
	who, _, ok := strings.Cut(s.Name, ": ")
	began := s.Start
	for _, o := range r.Timeline {
		if other, _, grouped := strings.Cut(o.Name, ": "); ok && grouped && other == who {
			began = min(began, o.Start)
		}
	}
	return began
}

// note is what stands beside a bar: how long it took, and how fast that was where bytes moved.
func (r *Result) note(s Span) string {
	n := fmt.Sprintf("%.2f s", s.End-s.Start)
	speed := func(v float64) string { return n + "  " + bytesOf(int64(v)) + "/s" }
	_, phase, _ := strings.Cut(s.Name, ": ")
	switch phase {
	case replay.Start:
		n += "  config, headers, tokenizer"
	case replay.Imports:
		n += "  reads nothing"
	case replay.Again:
		n += "  all of it from memory"
	case replay.Check:
		n += "  sha256"
	}
	switch s.Name {
	case "stage":
		return speed(r.StageRate) + ", sha256 checked"
	case "load", "fetch":
		return speed(r.LoadRate) + ", every chunk checked"
	case "curl":
		return speed(r.Curl.Rate) + ", unchecked"
	case "reader: " + replay.Weights:
		return speed(r.ColdRate)
	case "second reader: " + replay.Weights:
		return speed(r.WarmRate)
	}
	return n
}

// Lines sums up in words.
func (r *Result) Lines() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	where := map[string]string{Node: "on the node", Fetch: "in the directory"}[r.Road]
	first := ""
	if r.First > 0 {
		first = fmt.Sprintf("the first chunk after %.2f s, ", r.First)
	}
	add("%s, %s: %sall of it %s (%s) after %.2f s", r.Model, bytesOf(r.Bytes), first, where, r.Medium, r.Load)
	if v := r.VLLM; v != nil {
		add("vLLM was ready %.1f s after it was started together with the load, on a plain copy after %.1f s, and answered %s:", v.Road.Steps["ready"], v.Plain.Steps["ready"], same(v.Same))
		add("  %q", v.Road.Chat.Text)
		add("it read its weights in %.2f s, from the plain copy in %.2f s", weights(v.Road), weights(v.Plain))
	} else {
		if r.Road == Fetch {
			add("a reader on this road starts when all is there: of its %.2f s of stall the fetch is %.2f s", r.Stall, r.Load)
		} else {
			add("the reader, whose imports (░) took %.1f s, stalled %.2f s for bytes that were not there yet", r.HeadStart, r.Stall)
		}
		add("weights through a mapping: %s/s the first time, %s/s for the second reader", bytesOf(int64(r.ColdRate)), bytesOf(int64(r.WarmRate)))
	}
	if c := r.Curl; c != nil {
		add("%s brought the same bytes to the same medium in %.2f s, unchecked; headstart in %.2f s, checked", c.Tool, c.Seconds, r.Load)
	}
	if r.Verified {
		add("verified: %d files, every byte that was read is the Hub's, by sha256", r.Files)
	}
	return out
}

func same(ok bool) string {
	if ok {
		return "the same tokens"
	}
	return "OTHER tokens"
}
