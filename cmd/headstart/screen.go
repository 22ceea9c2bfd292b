package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// screen is a terminal whose last lines are redrawn in place. What is written to it otherwise, a line of
// the log say, comes to stand above them. The cursor stays visible and rests at the start of the line
// below: whoever ends the process at any moment finds the terminal as it was.
type screen struct {
	out  io.Writer
	size func() (width, height int)

	mu    sync.Mutex
	lines []string // that are drawn
}

// newScreen returns the terminal that w is, or nil.
func newScreen(w io.Writer, getenv func(string) string) *screen {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || getenv("TERM") == "dumb" {
		return nil
	}
	return &screen{out: f, size: func() (int, int) {
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			return 80, 24
		}
		return width, height
	}}
}

// Draw puts the lines where the last ones were, in one write and without clearing first, so that nothing
// flickers. A line that is too wide is cut; of lines that are too many the last ones stay.
func (s *screen) Draw(lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draw(nil, lines)
}

// Write writes above what is drawn.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		return s.out.Write(p)
	}
	if err := s.draw(p, s.lines); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *screen) draw(above []byte, lines []string) error {
	width, height := s.size()
	if most := max(height-1, 1); len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	var b bytes.Buffer
	if n := len(s.lines); n > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", n)
	}
	if len(above) > 0 {
		b.WriteString("\x1b[J")
		b.Write(above)
		if above[len(above)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	drawn := make([]string, len(lines))
	for i, l := range lines {
		drawn[i] = clipColumns(l, width-1)
		b.WriteString(drawn[i] + "\x1b[K\n")
	}
	if len(lines) < len(s.lines) || len(lines) == 0 {
		b.WriteString("\x1b[J")
	}
	s.lines = drawn
	_, err := s.out.Write(b.Bytes())
	return err
}

// columns is how wide a terminal shows s: characters from Hangul on, where the wide scripts begin, count
// twice but for the blocks and lines that bars are made of.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r >= 0x1100 && (r < 0x2000 || r >= 0x2e80) {
			n++
		}
	}
	return n
}

// clipColumns cuts s to so many columns.
func clipColumns(s string, most int) string {
	if columns(s) <= most {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if columns(b.String())+columns(string(r)) > most-1 {
			break
		}
		b.WriteRune(r)
	}
	if most > 0 {
		b.WriteRune('…')
	}
	return b.String()
}
