package demo

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/timeline"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRoomError(t *testing.T) {
	err := error(&RoomError{Dir: "/tmp", Free: 5e9, Want: 55e9})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "5.0 GB free") || !strings.Contains(err.Error(), "55.0 GB") {
		t.Errorf("%v", err)
	}
}

func TestRows(t *testing.T) {
	r := Result{StageRate: 100e6, Timeline: []Span{
		{Name: "stage", Start: 0, End: 3},
		{Name: "reader: start", Start: 3.1, End: 3.2}, // ends before the load does, and is noted before
		{Name: "reader: weights", Start: 4.2, End: 4.5},
		{Name: "load", Start: 3.05, End: 4.4},
		{Name: "second reader: start", Start: 5, End: 5.1},
	}}
	var labels []string
	for _, row := range r.Rows() {
		labels = append(labels, row.Label)
		if len(row.Spans) > 0 && row.Note == "" {
			t.Errorf("%s has no note", row.Label)
		}
	}
	want := []string{"stage", "load", "reader", "  start", "  weights", "second reader", "  start"}
	if !slices.Equal(labels, want) {
		t.Errorf("rows %q, want %q", labels, want)
	}
	if err := timeline.Draw(new(strings.Builder), r.Rows(), timeline.Style{Width: 80}); err != nil {
		t.Error(err)
	}
}
