package fetch_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

const (
	killedDir = "HEADSTART_TEST_KILLED" // the cache directory that TestBeKilled loads into
	killedAt  = 9                       // verified chunks after which it is killed
)

// After kill -9 in the middle of a load, the next process finds every chunk that was verified, and
// fetches only what was not.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestBeKilled$", "-test.count=1")
	child.Env = append(os.Environ(), killedDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "now" {
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // "signal: killed"

	m := fetchtest.NewModel(t, "org/kill", sizes())
	c := openCache(t, dir)
	if len(c.Entries()) != 1 {
		t.Fatalf("%d entries", len(c.Entries()))
	}
	entry := c.Entries()[0]
	var had []string
	for i, f := range m.Manifest.Files {
		for ch := range m.Manifest.ChunksOf(i) {
			if entry.Have(i, ch.Index) {
				had = append(had, fmt.Sprintf("%s@%d", f.Path, ch.Index))
			}
		}
	}
	if len(had) != killedAt {
		t.Errorf("it found %d chunks: %q", len(had), had)
	}
	src := &fetchtest.Memory{Objects: m.Objects}
	l := run(t, fetch.Config{Source: src}).Start(entry)
	wait(t, l)
	checkFiles(t, entry, m)
	again := paths(m, src.Requests())
	if len(again) != 19-killedAt || slices.ContainsFunc(again, func(s string) bool { return slices.Contains(had, s) }) {
		t.Errorf("it had %q and fetched %q", had, again)
	}
}

// TestBeKilled is the process that TestKill kills: it holds all streams in the middle of a chunk.
func TestBeKilled(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("only as a child of TestKill")
	}
	m := fetchtest.NewModel(t, "org/kill", sizes())
	c := openCache(t, dir)
	entry, err := c.Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	src := &fetchtest.Memory{Objects: m.Objects}
	src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
		if len(src.Requests()) > killedAt {
			return &fetchtest.Fault{Stall: true, After: r.N / 2}
		}
		return nil
	}
	l := run(t, fetch.Config{Source: src}).Start(entry)
	waitFor(t, l, func(p fetch.Progress) bool { return p.InFlight == 8 && verified(entry.Have, m) == killedAt })
	fmt.Println("now")
	<-l.Done()
}

func verified(have func(file, chunk int) bool, m *fetchtest.Model) int {
	n := 0
	for i := range m.Manifest.Files {
		for c := range m.Manifest.ChunksOf(i) {
			if have(i, c.Index) {
				n++
			}
		}
	}
	return n
}
