package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// terminal is what a person sees of what is written: enough of a terminal for what a screen uses. It
// fails the test where something goes over the edge.
type terminal struct {
	t             *testing.T
	width, height int
	rows          []string
	row           int
	writes        int
}

func (m *terminal) size() (int, int) { return m.width, m.height }

func (m *terminal) Write(p []byte) (int, error) {
	m.writes++
	at, col := 0, 0 // in runes and in columns
	for rest := string(p); rest != ""; {
		if m.row == len(m.rows) {
			m.rows = append(m.rows, "")
		}
		n, up := 1, 0
		switch {
		case rest[0] == '\n':
			m.row, at, col = m.row+1, 0, 0
		case rest[0] == '\r':
			at, col = 0, 0
		case strings.HasPrefix(rest, "\x1b[K"):
			m.rows[m.row] = string([]rune(m.rows[m.row])[:at])
			n = 3
		case strings.HasPrefix(rest, "\x1b[J"):
			m.rows = append(m.rows[:m.row], "")
			n = 3
		case strings.HasPrefix(rest, "\x1b["):
			if _, err := fmt.Sscanf(rest, "\x1b[%dA", &up); err != nil {
				m.t.Fatalf("unknown sequence: %q", rest)
			}
			if m.row -= up; m.row < 0 || up >= m.height {
				m.t.Fatalf("%d rows up from %d", up, m.row+up)
			}
			n = strings.IndexByte(rest, 'A') + 1
		default:
			r := []rune(rest)[0]
			n = len(string(r))
			line := []rune(m.rows[m.row])
			m.rows[m.row] = string(slices.Concat(line[:at], []rune{r}, line[min(at+1, len(line)):]))
			at++
			if col += columns(string(r)); col >= m.width {
				m.t.Errorf("over the edge: %q", m.rows[m.row])
			}
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// shown are the rows up to the cursor.
func (m *terminal) shown() []string { return m.rows[:m.row] }

// TestScreen draws in place, lets the log through above, and leaves nothing.
func TestScreen(t *testing.T) {
	m := &terminal{t: t, width: 20, height: 4}
	s := &screen{out: m, size: m.size}
	for _, step := range []struct {
		do   func()
		want []string
	}{
		{func() { fmt.Fprintln(s, "before") }, []string{"before"}},
		{func() { s.Draw([]string{"one", "two"}) }, []string{"before", "one", "two"}},
		{func() { s.Draw([]string{"1", "2", "3"}) }, []string{"before", "1", "2", "3"}},
		{func() { fmt.Fprintln(s, "log") }, []string{"before", "log", "1", "2", "3"}},
		{func() { s.Draw([]string{"a line that is too wide"}) }, []string{"before", "log", "a line that is too…"}},
		{func() { s.Draw([]string{"1", "2", "3", "4", "5"}) }, []string{"before", "log", "3", "4", "5"}},
		{func() { m.width = 6; s.Draw([]string{"漢字漢字", "total 5"}) }, []string{"before", "log", "漢字…", "tota…"}},
		{func() { s.Draw(nil) }, []string{"before", "log"}},
		{func() { fmt.Fprintln(s, "after") }, []string{"before", "log", "after"}},
	} {
		writes := m.writes
		step.do()
		if !slices.Equal(m.shown(), step.want) {
			t.Errorf("shown %q, want %q", m.shown(), step.want)
		}
		if m.writes != writes+1 {
			t.Errorf("%d writes for %q: it flickers", m.writes-writes, step.want)
		}
	}
}

// TestBars shows a transfer of three files on terminals of many sizes.
func TestBars(t *testing.T) {
	at := func(elapsed time.Duration) sample {
		n := min(900, elapsed.Milliseconds()/10) * 1_000_000
		s := sample{Done: n, Arrived: n, Total: 900_000_000, Of: "0 of 3 files"}
		for i := range int64(3) {
			s.Files = append(s.Files, fileSample{Path: fmt.Sprintf("model-0000%d-of-00003.safetensors", i+1), Stored: n / 4, Arrived: n / 3, Size: 300_000_000})
		}
		s.Files[2].Path = "evil\x1b[2J\x1b[31m.safetensors"
		return s
	}
	for width := 1; width <= 120; width += 7 {
		for _, height := range []int{1, 2, 3, 5, 24} {
			synctest.Test(t, func(t *testing.T) {
				m := &terminal{t: t, width: max(width, 2), height: max(height, 2)}
				g := &progress{label: "staging x", out: &screen{out: m, size: m.size}, style: bars}
				start := time.Now()
				var seen []string
				_ = g.During(t.Context(), func() sample { return at(time.Since(start)) }, func(context.Context) error {
					time.Sleep(1900 * time.Millisecond)
					mu := &g.out.(*screen).mu
					mu.Lock()
					if m.writes != 0 {
						t.Errorf("shown too early: %q", m.rows)
					}
					mu.Unlock()
					time.Sleep(3200 * time.Millisecond)
					mu.Lock()
					defer mu.Unlock()
					seen = slices.Clone(m.shown())
					return nil
				})
				if len(seen) == 0 || len(m.shown()) != 0 {
					t.Errorf("%d×%d: %q is shown, %q stays", width, height, seen, m.shown())
				}
				if width == 106 && height == 24 {
					want := []string{
						"model-00001-of-00003.safetensors ▕" + strings.Repeat("█", 22) + strings.Repeat("▒", 7),
						"model-00002", "evil", "staging x ▕",
					}
					for i, w := range want {
						if len(seen) != 4 || !strings.HasPrefix(seen[i], w) {
							t.Fatalf("%d×%d: %q, want %q", width, height, seen, want)
						}
					}
					if !strings.Contains(seen[3], "500 MB of 900 MB  55%  100 MB/s  4s left  0 of 3 files") {
						t.Errorf("the total: %q", seen[3])
					}
				}
			})
		}
	}
}

// TestPlainFiles names the files in flight behind the total, a few of them.
func TestPlainFiles(t *testing.T) {
	var out bytes.Buffer
	g := &progress{label: "staging x", out: &out}
	s := sample{Done: 1_000_000, Arrived: 1, Total: 4_000_000, Of: "2 of 9 files", Note: "waiting for the Hub: rate limit, 55s left"}
	for i := range int64(6) {
		s.Files = append(s.Files, fileSample{Path: fmt.Sprintf("%d.json", i), Arrived: i, Size: 10})
	}
	g.draw(s, 1_000_000)
	want := "staging x 1.0 MB of 4.0 MB  25%  1.0 MB/s  3s left  2 of 9 files  (waiting for the Hub: rate limit, 55s left)  [0.json 0%, 1.json 10%, 2.json 20%, 3.json 30%, 2 more]\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}
