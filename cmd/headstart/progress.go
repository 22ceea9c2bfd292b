package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// sample is how far a transfer is at one moment.
type sample struct {
	Done, Total int64        // bytes; Total is 0 while it is not known
	Arrived     int64        // bytes received, which the rate is of; Done may also grow by what was there
	Files       []fileSample // in flight; nil where files are not told apart
	Of          string       // how many files are done, "3 of 12 files", or ""
	Note        string       // what is waited for, "" where nothing is
	Still       string       // what to say when nothing moves; "" is "nothing has arrived"
}

// fileSample is how far a file is, in bytes.
type fileSample struct {
	Path                  string
	Stored, Arrived, Size int64 // Arrived counts what is stored, too
}

// progress shows a transfer while it runs: bars on a terminal, a line every few seconds elsewhere, an
// event every second as JSON. Nothing is shown of what ends within two seconds, but as JSON.
type progress struct {
	label string
	out   io.Writer
	style style
}

type style int

const (
	plain style = iota
	bars
	events
)

// newProgress shows on stderr for a person; with asJSON it writes events to stdout. A terminal becomes
// p's stderr's screen, so that the log stands above the bars: make the logger afterwards.
func newProgress(p *process, label string, asJSON bool) *progress {
	if asJSON {
		return &progress{label: label, out: p.Stdout, style: events}
	}
	if s := newScreen(p.Stderr, p.Getenv); s != nil {
		p.Stderr = s
		return &progress{label: label, out: s, style: bars}
	}
	return &progress{label: label, out: p.Stderr, style: plain}
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
	every := map[style]time.Duration{plain: 5 * time.Second, bars: 200 * time.Millisecond, events: time.Second}[g.style]
	first := map[style]time.Duration{plain: 2 * time.Second, bars: 2 * time.Second, events: time.Second}[g.style]
	var r rate
	var still stillness
	still.add(time.Now(), now())
	r.add(time.Now(), now().Arrived)
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			if s, ok := g.out.(*screen); ok {
				s.Draw(nil)
			}
			return
		case <-timer.C:
		}
		s := now()
		if note := still.add(time.Now(), s); s.Note == "" {
			s.Note = note
		}
		r.add(time.Now(), s.Arrived)
		g.draw(s, r.perSecond())
		timer.Reset(every)
	}
}

func (g *progress) draw(s sample, perSecond float64) {
	switch g.style {
	case events:
		// A write that fails is found when the result is written.
		_ = json.NewEncoder(g.out).Encode(newProgressEvent(s, perSecond))
	case bars:
		screen := g.out.(*screen)
		width, height := screen.size()
		screen.Draw(g.lines(s, perSecond, width, height))
	default:
		fmt.Fprintln(g.out, g.label, status(s, perSecond)+inFlight(s.Files))
	}
}

// progressEvent is a sample as JSON.
type progressEvent struct {
	Event          string              `json:"event"`
	Bytes          int64               `json:"bytes"`
	Total          int64               `json:"total"`
	BytesPerSecond int64               `json:"bytes_per_second"`
	SecondsLeft    *int64              `json:"seconds_left,omitempty"`
	Files          []progressFileEvent `json:"files,omitempty"`
	Note           string              `json:"note"`
}

type progressFileEvent struct {
	Path     string `json:"path"`
	Bytes    int64  `json:"bytes"`
	Received int64  `json:"received"`
	Total    int64  `json:"total"`
}

func newProgressEvent(s sample, perSecond float64) progressEvent {
	e := progressEvent{Event: "progress", Bytes: s.Done, Total: s.Total, BytesPerSecond: int64(perSecond), Note: s.Note}
	if d := left(s, perSecond); d > 0 {
		seconds := int64(d.Seconds())
		e.SecondsLeft = &seconds
	}
	for _, f := range s.Files {
		e.Files = append(e.Files, progressFileEvent{f.Path, f.Stored, f.Arrived, f.Size})
	}
	return e
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
	if d := left(s, perSecond); d > 0 {
		fmt.Fprintf(&b, "  %s left", d)
	}
	if s.Of != "" {
		b.WriteString("  " + s.Of)
	}
	if s.Note != "" {
		b.WriteString("  (" + s.Note + ")")
	}
	return b.String()
}

// left is how long the rest takes at this rate; 0 where nobody can tell.
func left(s sample, perSecond float64) time.Duration {
	rest := s.Total - s.Done
	if s.Total <= 0 || rest <= 0 || perSecond <= 0 {
		return 0
	}
	return time.Duration(min(float64(rest)/perSecond, 1e9) * float64(time.Second)).Round(time.Second)
}

// stillness notices that nothing moves.
type stillness struct {
	done, arrived int64
	since         time.Time
}

// add returns what to say of how long nothing has moved, "" for nothing.
func (s *stillness) add(t time.Time, at sample) string {
	if at.Done != s.done || at.Arrived != s.arrived || s.since.IsZero() {
		s.done, s.arrived, s.since = at.Done, at.Arrived, t
	}
	if still := t.Sub(s.since); still >= 10*time.Second {
		return cmp.Or(at.Still, "nothing has arrived") + " for " + still.Round(time.Second).String()
	}
	return ""
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
