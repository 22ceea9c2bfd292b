package fetch_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// TestFollow: what was learnt while the heads came is followed, what a reader waits for comes before it,
// and what nobody knew of comes last.
func TestFollow(t *testing.T) {
	m := fetchtest.NewModel(t, "org/a", map[string]int{"config.json": 9, "w": 8 * chunk})
	begun, hold := make(chan struct{}), make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects, Fault: func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
		if strings.HasSuffix(r.Key, "/w") && r.Off == 0 {
			close(begun)
			<-hold
		}
		return nil
	}}
	e := run(t, fetch.Config{Source: src, Streams: 1})
	l := e.Start(newEntry(t, m))
	<-begun
	l.Follow([]int{0, 8, 7, 1, 3}) // chunk 0 is config.json's, 1 to 8 are w's
	ready := make(chan error)
	go func() { ready <- l.Wait(t.Context(), 1, 4*chunk, 1) }()
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 1 })
	if p := l.Progress(); p.Wanted != fmt.Sprint("w at ", 4*chunk) || p.Learnt != 5 || p.Stalls != 1 || p.Waits != 1 {
		t.Errorf("%+v", p)
	}
	close(hold)
	if err := <-ready; err != nil {
		t.Error(err)
	}
	wait(t, l)
	want := []string{"config.json@0", "w@0", "w@4", "w@7", "w@6", "w@2", "w@1", "w@3", "w@5"}
	if got := paths(m, src.Requests()); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	l.Follow([]int{3}) // too late, and no harm
}

// TestStallIsNotAddedUp: the reads of one reader wait at the same time.
func TestStallIsNotAddedUp(t *testing.T) {
	m := fetchtest.NewModel(t, "org/a", map[string]int{"w": 8 * chunk})
	hold := make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects, Fault: func(context.Context, fetchtest.Request) *fetchtest.Fault {
		<-hold
		return nil
	}}
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	e := fetch.New(fetch.Config{Source: src, Name: "gs", Log: slog.New(slog.NewJSONHandler(&log, nil))})
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	l := e.Start(newEntry(t, m))
	began := time.Now()
	ready := make(chan error)
	for i := range int64(8) {
		go func() { ready <- l.Wait(t.Context(), 0, i*chunk, 1) }()
	}
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 8 })
	if n := counter(t, e, "headstart_demand_stalls_total", ""); n != 0 {
		t.Errorf("%v stalls have ended, and all wait", n)
	}
	close(hold)
	for range 8 {
		if err := <-ready; err != nil {
			t.Error(err)
		}
	}
	took := time.Since(began)
	wait(t, l)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	p := l.Progress()
	if p.Waits != 8 || p.Stalls != 1 || p.Stalled <= 0 || p.Stalled > took || p.Wanted != "" || p.Waiting != 0 {
		t.Errorf("after %v: %+v", took, p)
	}
	if n, s := counter(t, e, "headstart_demand_stalls_total", "org/a"), counter(t, e, "headstart_demand_stall_seconds_total", "org/a"); n != 1 || s != p.Stalled.Seconds() {
		t.Errorf("%v stalls of %v s, want one of %v", n, s, p.Stalled)
	}
	if p.Heads.Before(p.First) || p.Filled.Before(p.Heads) || p.Ended.Before(p.Filled) || p.First.Before(p.Started) {
		t.Errorf("not in the order of time: %+v", p)
	}
	line := log.String()
	for _, key := range []string{"load ended", `"model":"org/a@`, `"source":"gs"`, `"started":"`, `"first_chunk":`, `"heads":`, `"all_verified":`, `"elapsed":`, `"fetched_bytes":524288`, `"refetches":0`, `"stalls":1`, `"stalled":`, `"reads_that_waited":8`, `"learnt_chunks":0`} {
		if strings.Count(line, "\n") != 1 || !strings.Contains(line, key) {
			t.Errorf("no %s in %s", key, line)
		}
	}
}

// TestBytesByOutcome: what came in vain is counted apart. What a broken connection brought is no loss.
func TestBytesByOutcome(t *testing.T) {
	m := fetchtest.NewModel(t, "org/a", map[string]int{"w": 2*chunk + 100})
	src := &fetchtest.Memory{Objects: m.Objects, Fault: func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
		switch {
		case r.Attempt > 1:
		case r.Off == 0:
			return &fetchtest.Fault{After: 1000, Err: fetchtest.ErrReset}
		case r.Off == chunk:
			return &fetchtest.Fault{After: 7, Flip: true}
		}
		return nil
	}}
	e := run(t, fetch.Config{Source: src, Name: "gs"})
	wait(t, e.Start(newEntry(t, m)))
	for outcome, want := range map[string]float64{"verified": 2*chunk + 100, "discarded": chunk} {
		if got := counter(t, e, "headstart_fetched_bytes_total", outcome); got != want {
			t.Errorf("%v bytes %s, want %v", got, outcome, want)
		}
	}
	if n := counter(t, e, "headstart_chunks_total", "verified"); n != 3 {
		t.Errorf("%v chunks", n)
	}
}

// TestModelsAreBounded: however many models a node sees, the metrics have few labels.
func TestModelsAreBounded(t *testing.T) {
	e := run(t, fetch.Config{Source: &fetchtest.Memory{}})
	for i := range 105 {
		m := fetchtest.NewModel(t, fmt.Sprintf("org/m%d", i), map[string]int{"w": 1})
		<-e.Start(newEntry(t, m)).Done()
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(e.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	models := map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "headstart_demand_stalls_total" {
				models[m.GetLabel()[0].GetValue()] = true
			}
		}
	}
	if len(models) != 101 || !models["other"] {
		t.Errorf("%d models in the metrics", len(models))
	}
}
