package main

import (
	"fmt"
	"strings"
)

// lines are the bars of a terminal: one a file in flight, as many as there is room for, and the total.
func (g *progress) lines(s sample, perSecond float64, width, height int) []string {
	files := s.Files
	if most := max(min(height-3, 8), 0); len(files) > most {
		files = files[:most]
	}
	var lines []string
	name := 0
	for _, f := range files {
		name = max(name, columns(oneLine(f.Path)))
	}
	name = min(name, width/2)
	for _, f := range files {
		label := clipColumns(oneLine(f.Path), name)
		label += strings.Repeat(" ", name-columns(label))
		text := fmt.Sprintf("%3d%% of %s", percent(f.Arrived, f.Size), bytesOf(f.Size))
		lines = append(lines, label+bar(f.Stored, f.Arrived, f.Size, width-1-name-len("100% of 99.9 MB")-5)+text)
	}
	if more := len(s.Files) - len(files); more > 0 && len(files) > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	text := status(s, perSecond)
	return append(lines, g.label+bar(s.Done, s.Done, s.Total, min(width-1-columns(g.label)-columns(text)-4, 40))+text)
}

// bar is so many columns wide, with a frame and a space at either side; a space where there is no room.
func bar(stored, arrived, size int64, room int) string {
	if room < 10 || size <= 0 {
		return " "
	}
	full := int(float64(room) * float64(min(stored, size)) / float64(size))
	half := int(float64(room)*float64(min(max(arrived, stored), size))/float64(size)) - full
	return " ▕" + strings.Repeat("█", full) + strings.Repeat("▒", half) + strings.Repeat(" ", room-full-half) + "▏ "
}

func percent(n, of int64) int {
	if of <= 0 {
		return 100
	}
	return int(100 * float64(min(n, of)) / float64(of))
}

// inFlight names the files in flight behind a line, a few of them.
func inFlight(files []fileSample) string {
	const most = 4
	var names []string
	for _, f := range files[:min(len(files), most)] {
		names = append(names, fmt.Sprintf("%s %d%%", oneLine(f.Path), percent(f.Arrived, f.Size)))
	}
	if more := len(files) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	if len(names) == 0 {
		return ""
	}
	return "  [" + strings.Join(names, ", ") + "]"
}
