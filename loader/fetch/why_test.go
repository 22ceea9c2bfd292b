package fetch_test

import (
	"context"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// TestWhy asks about chunks in every state; one stream receives, and that is held.
func TestWhy(t *testing.T) {
	m := fetchtest.NewModel(t, "google/gemma", map[string]int{"a": 4 * fetchtest.ChunkSize, "b": 1, "empty": 0})
	open := make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects, Fault: func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		select {
		case <-open:
		case <-ctx.Done():
		}
		return nil
	}}
	l := run(t, fetch.Config{Source: src, Streams: 1}).Start(newEntry(t, m))
	waitFor(t, l, func(p fetch.Progress) bool { return p.InFlight == 1 })
	ask := func(file int, off, n int64, want string) {
		t.Helper()
		if got := l.Why(file, off, n); !strings.Contains(got, want) {
			t.Errorf("%d bytes at %d of file %d: %q, want %q", n, off, file, got, want)
		}
	}
	received := src.Requests()[0]
	file := map[bool]int{true: 0, false: 1}[strings.HasSuffix(received.Key, "/a")]
	ask(file, received.Off, 1, "is being received")
	ask(0, 3*fetchtest.ChunkSize, 1, "turn has not come: 5 of")
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- l.Wait(ctx, 0, 3*fetchtest.ChunkSize, 9) }()
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 1 })
	ask(0, 3*fetchtest.ChunkSize, 1, "asked for by readers, as 0 others")
	leave()
	<-left
	close(open)
	wait(t, l)
	ask(0, 0, 4*fetchtest.ChunkSize, "its bytes are there")
	ask(2, 0, 1, "its bytes are there")
}
