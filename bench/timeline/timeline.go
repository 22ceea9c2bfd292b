// Package timeline draws what happened when, as bars of text under one axis of time.
//
//	           0 s           2            4
//	stage      ████████████▏                     1.9 s  536 MB
//	reader
//	  imports              ░░░░░░░░░░░░░░░░░░░   3.0 s
//	  weights                                 ██▉ 0.5 s  1.1 GB/s
//
// A bar begins in the column its start falls into, ends to an eighth of a column, and is never empty. The drawing fits the width it is given; where notes and bars do not
// fit side by side, each note gets a line of its own.
package timeline

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Row is one line of the drawing. A row without spans is a heading.
type Row struct {
	Label string
	Spans []Span // in the order of time
	Note  string // what stands beside the bar
}

// Span is one stretch of time, measured from the drawing's zero.
type Span struct {
	Start, End time.Duration
	Idle       bool // time that passes without work: drawn lighter
}

// Style says how to draw.
type Style struct {
	Width  int  // columns; fewer than 40 count as 40
	ASCII  bool // for a terminal without UTF-8
	Colour bool // ANSI colours
}

const (
	minWidth = 40
	minBars  = 24 // columns; with fewer, notes get lines of their own
)

// Draw writes the rows under an axis from zero to the last span's end.
func Draw(w io.Writer, rows []Row, s Style) error {
	d := layout(rows, s)
	var b strings.Builder
	d.line(&b, "", d.axis(), "")
	for _, r := range rows {
		if len(r.Spans) == 0 {
			d.line(&b, r.Label, "", r.Note)
			continue
		}
		d.line(&b, r.Label, d.bar(r.Spans), r.Note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// drawing is the geometry: a column of labels, one of bars, one of notes.
type drawing struct {
	Style
	total        time.Duration
	labels, bars int // columns
	below        bool
}

func layout(rows []Row, s Style) drawing {
	d := drawing{Style: s, total: 1}
	d.Width = max(d.Width, minWidth)
	notes := 0
	for _, r := range rows {
		d.labels = max(d.labels, utf8.RuneCountInString(r.Label))
		for _, p := range r.Spans {
			d.total = max(d.total, p.End)
		}
		if len(r.Spans) > 0 {
			notes = max(notes, utf8.RuneCountInString(r.Note))
		}
	}
	d.labels = min(d.labels, d.Width/2)
	d.bars = d.Width - d.labels - 2
	if notes > 0 {
		if beside := d.bars - notes - 2; beside >= minBars {
			d.bars = beside
		} else {
			d.below = true
		}
	}
	return d
}

// line writes one row. The bars' text may hold colours, so it comes padded.
func (d *drawing) line(b *strings.Builder, label, bars, note string) {
	text := pad(clip(label, d.labels), d.labels) + "  " + bars
	switch {
	case note == "":
	case bars == "": // a heading has the rest of the line to itself
		text = clip(label+"  "+note, d.Width)
	case d.below:
		text = strings.TrimRight(text, " ") + "\n" + strings.Repeat(" ", d.labels+2) + clip(note, d.bars)
	default:
		text += "  " + note
	}
	b.WriteString(strings.TrimRight(text, " "))
	b.WriteByte('\n')
}

// column returns where t falls, in eighths of a column.
func (d *drawing) column(t time.Duration) int {
	return int(math.Round(float64(8*d.bars) * float64(min(max(t, 0), d.total)) / float64(d.total)))
}

// fill is the runes of a bar: a whole column, and its first eighth to its seventh.
type fill struct {
	whole  rune
	parts  []rune
	colour string
}

var (
	busy      = fill{'█', []rune("▏▎▍▌▋▊▉"), "\x1b[36m"}
	idle      = fill{'░', []rune("░░░░░░░"), "\x1b[2m"}
	busyASCII = fill{'#', []rune("|||####"), busy.colour}
	idleASCII = fill{'.', []rune("......."), idle.colour}
)

func (d *drawing) fill(p Span) fill {
	switch {
	case p.Idle && d.ASCII:
		return idleASCII
	case p.Idle:
		return idle
	case d.ASCII:
		return busyASCII
	}
	return busy
}

// first returns the column that p begins in.
func (d *drawing) first(p Span) int { return min(d.column(p.Start)/8, d.bars-1) }

// bar draws the spans of one row into d.bars columns.
func (d *drawing) bar(spans []Span) string {
	var b strings.Builder
	at := 0
	for i, p := range spans {
		first := max(d.first(p), at)
		if first >= d.bars {
			break
		}
		end := max(d.column(p.End), 8*first+1)
		if i+1 < len(spans) { // the next one gets the column it begins in
			end = min(end, 8*max(d.first(spans[i+1]), first+1))
		}
		b.WriteString(strings.Repeat(" ", first-at))
		f := d.fill(p)
		text := strings.Repeat(string(f.whole), end/8-first)
		if end%8 != 0 {
			text += string(f.parts[end%8-1])
		}
		if d.Colour {
			text = f.colour + text + "\x1b[0m"
		}
		b.WriteString(text)
		at = (end + 7) / 8
	}
	return b.String() + strings.Repeat(" ", d.bars-at)
}

// axis writes the time at round distances of at least ten columns.
func (d *drawing) axis() string {
	apart := tick(d.total, d.bars/10)
	line := make([]rune, 0, d.bars)
	for i := 0; ; i++ {
		t := time.Duration(i) * apart
		text := fmt.Sprintf("%g", t.Seconds())
		if i == 0 {
			text = "0 s"
		}
		at := d.column(t) / 8
		if t > d.total || at+len(text) > d.bars {
			return string(line)
		}
		line = append([]rune(pad(string(line), at)), []rune(text)...)
	}
}

// tick returns the smallest of 1, 2, 5 × 10ⁿ that divides total into at most n parts.
func tick(total time.Duration, n int) time.Duration {
	for unit := time.Millisecond; ; unit *= 10 {
		for _, k := range []time.Duration{1, 2, 5} {
			if total <= k*unit*time.Duration(max(n, 1)) {
				return k * unit
			}
		}
	}
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}
