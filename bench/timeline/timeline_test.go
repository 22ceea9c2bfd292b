package timeline_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/headstart-serving/headstart/bench/timeline"
)

var update = flag.Bool("update", false, "write the golden files")

const ms = time.Millisecond

func span(start, end int) []timeline.Span {
	return []timeline.Span{{Start: time.Duration(start) * ms, End: time.Duration(end) * ms}}
}

var demo = []timeline.Row{
	{Label: "stage", Spans: span(0, 3120), Note: "3.1 s  570 MB  183 MB/s"},
	{Label: "node", Note: "google/gemma-3-270m-it"},
	{Label: "  first byte", Spans: span(3150, 3200), Note: "0.05 s"},
	{Label: "  load", Spans: span(3150, 4400), Note: "1.3 s  456 MB/s"},
	{Label: "reader"},
	{Label: "  start", Spans: span(3180, 3300), Note: "0.1 s"},
	{Label: "  imports", Spans: []timeline.Span{{Start: 3300 * ms, End: 4300 * ms, Idle: true}}, Note: "1.0 s"},
	{Label: "  weights", Spans: span(4300, 4700), Note: "0.4 s  stall 0.1 s"},
	{Label: "second", Spans: []timeline.Span{{Start: 6000 * ms, End: 6001 * ms}, {Start: 6001 * ms, End: 7000 * ms, Idle: true}, {Start: 7000 * ms, End: 7250 * ms}}, Note: "0.2 s"},
	{Label: "end", Spans: span(7250, 7250)},
}

func TestGolden(t *testing.T) {
	for name, s := range map[string]timeline.Style{
		"wide":   {Width: 120},
		"normal": {Width: 80},
		"narrow": {Width: 44},
		"none":   {Width: 0},
		"ascii":  {Width: 80, ASCII: true},
		"colour": {Width: 80, Colour: true},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := timeline.Draw(&b, demo, s); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", b.Bytes(), want)
			}
		})
	}
}

// TestFits: no line is wider than asked for, every span is seen, at whatever width and length.
func TestFits(t *testing.T) {
	for width := 40; width <= 130; width += 7 {
		for _, total := range []time.Duration{1, ms, 37 * ms, 999 * ms, 61 * time.Second, 26 * time.Hour} {
			rows := []timeline.Row{
				{Label: "all", Spans: []timeline.Span{{End: total}}, Note: "note"},
				{Label: "last", Spans: []timeline.Span{{Start: total, End: total}}},
				{Label: "before the first", Spans: []timeline.Span{{Start: -total, End: 0}}},
				{Label: "two in one column", Spans: []timeline.Span{{End: total / 1000}, {Start: total / 1000, End: total / 500}}},
			}
			var b strings.Builder
			if err := timeline.Draw(&b, rows, timeline.Style{Width: width}); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
			for i, line := range lines {
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("width %d, %v: %d columns: %q", width, total, n, line)
				}
				if i > 0 && strings.TrimSpace(line) != "note" && !strings.ContainsAny(line, "█▏▎▍▌▋▊▉") {
					t.Errorf("width %d, %v: nothing drawn: %q", width, total, line)
				}
			}
		}
	}
}

func ExampleDraw() {
	rows := []timeline.Row{
		{Label: "stage", Spans: span(0, 1900), Note: "1.9 s"},
		{Label: "load", Spans: span(2000, 6000), Note: "4.0 s"},
	}
	if err := timeline.Draw(os.Stdout, rows, timeline.Style{Width: 50}); err != nil {
		fmt.Println(err)
	}
	// Output:
	//        0 s         2           4
	// stage  ███████████▍                          1.9 s
	// load               ████████████████████████  4.0 s
}
