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
	add("%s: %d files, %s, by the road of %s onto %s", r.Model, r.Files, bytesOf(r.Bytes), r.Road, r.Medium)
	if v := r.VLLM; v != nil {
		add("vLLM was ready after %.1f s while its weights arrived in %.1f s, on a plain copy after %.1f s; it answered %s",
			v.Road.Steps["ready"], r.Load, v.Plain.Steps["ready"], same(v.Same))
		add("  chat: %q", v.Road.Chat.Text)
	} else {
		add("first chunk after %.2f s, all bytes on the node after %.2f s; the reader gave %.1f s and waited %.2f s", r.First, r.Load, r.HeadStart, r.Stall)
		add("cold %s/s, warm %s/s through a mapping", bytesOf(int64(r.ColdRate)), bytesOf(int64(r.WarmRate)))
	}
	if c := r.Curl; c != nil {
		add("%s brought the same bytes in %.2f s, unchecked; the node in %.2f s, checked", c.Tool, c.Seconds, r.Load)
	}
	if r.Verified {
		add("verified: every byte that was read is the Hub's")
	}
	return out
}

func same(ok bool) string {
	if ok {
		return "the same tokens"
	}
	return "OTHER tokens"
}
