package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// sample is how far a transfer is at one moment.
type sample struct {
	Done, Total int64  // bytes; Total is 0 while it is not known
	Note        string // what is waited for, "" where nothing is
}

// progress shows a transfer while it runs: a bar on a terminal, a line every few seconds
// elsewhere, an event every second as JSON. Nothing is shown of what ends within two seconds.
type progress struct {
	label string
	out   io.Writer // where it is shown
	style style
	width int // columns of the terminal
}

type style int

const (
	plain style = iota
	bar
	events
)

// newProgress shows on stderr for a person; with asJSON it writes events to stdout.
func newProgress(p process, label string, asJSON bool) *progress {
	if asJSON {
		return &progress{label: label, out: p.Stdout, style: events}
	}
	g := &progress{label: label, out: p.Stderr, style: plain}
	if f, ok := p.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && p.Getenv("TERM") != "dumb" {
		g.style, g.width = bar, 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			g.width = w
		}
	}
	return g
}

// During shows what now returns until work ends, and returns work's error.
func (g *progress) During(ctx context.Context, now func() sample, work func(context.Context) error) error {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		g.show(stop, now)
	}()
	err := work(ctx)
	close(stop)
	<-stopped
	return err
}

func (g *progress) show(stop <-chan struct{}, now func() sample) {
	every := map[style]time.Duration{plain: 5 * time.Second, bar: 200 * time.Millisecond, events: time.Second}[g.style]
	var r rate
	r.add(time.Now(), now().Done)
	drawn := false
	last, moved := now().Done, time.Now()
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			if drawn && g.style == bar {
				fmt.Fprint(g.out, "\r\x1b[K")
			}
			return
		case <-timer.C:
		}
		s := now()
		if s.Done != last {
			last, moved = s.Done, time.Now()
		}
		if still := time.Since(moved); s.Note == "" && still >= 10*time.Second {
			s.Note = "nothing has arrived for " + still.Round(time.Second).String()
		}
		r.add(time.Now(), s.Done)
		g.draw(s, r.perSecond())
		drawn = true
		timer.Reset(every)
	}
}

func (g *progress) draw(s sample, perSecond float64) {
	switch g.style {
	case events:
		// A write that fails is found when the result is written.
		_ = json.NewEncoder(g.out).Encode(map[string]any{"event": "progress", "bytes": s.Done, "total": s.Total, "bytes_per_second": int64(perSecond), "note": s.Note})
	case bar:
		line := g.label + " " + status(s, perSecond)
		if room := g.width - len([]rune(line)) - 4; room >= 10 && s.Total > 0 {
			full := int(int64(room) * min(s.Done, s.Total) / s.Total)
			line = g.label + " ▕" + strings.Repeat("█", full) + strings.Repeat(" ", room-full) + "▏ " + status(s, perSecond)
		}
		if r := []rune(line); len(r) >= g.width {
			line = string(r[:g.width-1])
		}
		fmt.Fprint(g.out, "\r\x1b[K", line)
	default:
		fmt.Fprintln(g.out, g.label, status(s, perSecond))
	}
}

// status is "1.2 of 8.6 GB  14%  410 MB/s  18s left".
func status(s sample, perSecond float64) string {
	var b strings.Builder
	if s.Total > 0 {
		fmt.Fprintf(&b, "%s of %s  %d%%", bytesOf(s.Done), bytesOf(s.Total), 100*s.Done/s.Total)
	} else {
		b.WriteString(bytesOf(s.Done))
	}
	fmt.Fprintf(&b, "  %s/s", bytesOf(int64(perSecond)))
	if left := s.Total - s.Done; s.Total > 0 && left > 0 && perSecond > 0 {
		fmt.Fprintf(&b, "  %s left", time.Duration(float64(left)/perSecond*float64(time.Second)).Round(time.Second))
	}
	if s.Note != "" {
		b.WriteString("  (" + s.Note + ")")
	}
	return b.String()
}

// rate is a mean over the last ten seconds, so that a stall is seen.
type rate struct {
	at   []time.Time
	done []int64
}

func (r *rate) add(t time.Time, done int64) {
	r.at, r.done = append(r.at, t), append(r.done, done)
	for len(r.at) > 2 && t.Sub(r.at[1]) >= 10*time.Second {
		r.at, r.done = r.at[1:], r.done[1:]
	}
}

func (r *rate) perSecond() float64 {
	last := len(r.at) - 1
	elapsed := r.at[last].Sub(r.at[0]).Seconds()
	if elapsed <= 0 {
		return 0
	}
	return float64(r.done[last]-r.done[0]) / elapsed
}

// bytesOf writes a number of bytes in decimal units, as the Hub and Cloud Storage do.
func bytesOf(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB"} {
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
