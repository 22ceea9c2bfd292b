package loading

import (
	"fmt"
	"html"
	"strings"

	"github.com/headstart-serving/headstart/bench/score"
)

// bar is a line of a chart.
type bar struct {
	label, note string
	value       score.Spread
	color       string
	mark        float64 // a line to compare with; 0 for none
}

// The measures of a chart, in pixels.
const (
	wide   = 960
	labels = 330 // for the names
	notes  = 250 // for what stands beside a bar
	high   = 26  // of a line
	panel  = 44  // of a panel's title
)

// Colours that are told apart by most eyes, on white and on black.
const (
	oursColor  = "#0b7a75"
	limitColor = "#8a8d91"
	peerColor  = "#d1873b"
)

// SVG draws the rates of each network and the starts over it: bars of medians, with a line from the least to the most.
func (r *Result) SVG() []byte {
	var body strings.Builder
	y := 34
	title := "from the bucket to readable bytes"
	if len(r.Loads) == 0 {
		title = "from the begin of the load to vLLM's first token"
	}
	text(&body, 10, 22, "start", "bold", fmt.Sprintf("%s, %s: %s", r.Model, score.Bytes(r.Bytes), title))
	for i := range r.Loads {
		l := &r.Loads[i]
		var rates []bar
		for _, w := range l.Ways {
			if len(w.Runs) == 0 {
				continue // it was ended before
			}
			note := fmt.Sprintf("%.0f MB/s, %.2f CPU-s/GB", w.Rate.Median/1e6, w.CPU.Median+w.Reader.Median)
			if w.Checks == unchecked || w.Checks == sizeOnly {
				note += ", unchecked"
			}
			rates = append(rates, bar{label: w.Name, note: note, value: w.Rate, color: colorOf(w.Name)})
		}
		y = draw(&body, y, l.Name+": "+l.Title, rates)
		var starts []bar
		for _, s := range l.Starts {
			if len(s.Runs) == 0 {
				continue
			}
			starts = append(starts, bar{label: s.Name, note: fmt.Sprintf("%.1f s, ideal %.1f s", s.Seconds.Median, s.Ideal), value: s.Seconds, color: colorOf(s.Name), mark: s.Ideal})
		}
		if len(starts) > 0 {
			y = draw(&body, y, fmt.Sprintf("%s: until a server that reads as vLLM has its last weight (line: ideal)", l.Name), starts)
		}
	}
	if r.Servers != nil {
		y = r.Servers.draw(&body, y)
	}
	text(&body, 10, y+18, "start", "small", r.Machine+"; load average "+r.Load)
	y += 30
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" font-family="system-ui, sans-serif" font-size="13">
<style>text{fill:#24292f}.bold{font-weight:600;font-size:15px}.small{font-size:11px;fill:#57606a}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
%s</svg>
`, wide, y, body.String())
}

// draw draws a panel for each network, with the plain copy's line in it, and returns where they end.
func (s *Servers) draw(b *strings.Builder, y int) int {
	for _, o := range s.Over {
		var bars []bar
		for _, x := range append([]ServerStart{s.Plain}, o.Starts...) {
			if len(x.Runs) > 0 {
				note := fmt.Sprintf("%.1f s, weights in %.1f s", x.First.Median, x.Late.Median)
				bars = append(bars, bar{label: x.Name, note: note, value: x.First, color: colorOf(x.Name), mark: s.Plain.First.Median})
			}
		}
		y = draw(b, y, o.title(), bars)
	}
	return y
}

// draw draws a panel from y and returns where it ends.
func draw(b *strings.Builder, y int, title string, bars []bar) int {
	most := 0.0
	for _, x := range bars {
		most = max(most, x.value.Max, x.mark)
	}
	if most <= 0 {
		return y
	}
	scale := float64(wide-labels-notes) / most
	text(b, 10, y+panel-16, "start", "", title)
	y += panel
	for _, x := range bars {
		middle := y + high/2
		at := func(v float64) float64 { return labels + v*scale }
		text(b, labels-8, middle+4, "end", "", x.label)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labels, y+4, x.value.Median*scale, high-8, x.color)
		fmt.Fprintf(b, `<path d="M%.1f %dH%.1f" stroke="#24292f"/>`+"\n", at(x.value.Min), middle, at(x.value.Max))
		if x.mark > 0 {
			fmt.Fprintf(b, `<path d="M%.1f %dv%d" stroke="#24292f" stroke-width="2"/>`+"\n", at(x.mark), y+1, high-2)
		}
		text(b, int(at(max(x.value.Max, x.mark)))+8, middle+4, "start", "small", x.note)
		y += high
	}
	return y
}

func text(b *strings.Builder, x, y int, anchor, class, s string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s" class="%s">%s</text>`+"\n", x, y, anchor, class, html.EscapeString(s))
}

func colorOf(name string) string {
	switch {
	case name == limitName, name == plainServer:
		return limitColor
	case strings.HasPrefix(name, "headstart"):
		return oursColor
	}
	return peerColor
}
