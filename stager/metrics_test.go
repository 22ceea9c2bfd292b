package stager_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// values are the metrics with their labels' values, without those that are 0 or tell the time.
func values(t *testing.T, m *stager.Metrics) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m.Collectors()...)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		name, ok := strings.CutPrefix(f.GetName(), "headstart_stage_")
		if !ok {
			t.Errorf("%s has another prefix", f.GetName())
		}
		for _, one := range f.GetMetric() {
			key := name
			for _, l := range one.GetLabel() {
				key += " " + l.GetValue()
			}
			if v := one.GetGauge().GetValue() + one.GetCounter().GetValue(); v != 0 && !strings.HasSuffix(name, "seconds") {
				got[key] = v
			}
		}
	}
	return got
}

// TestMetrics counts a run, one that has nothing to do, and one that fails: exactly, each.
func TestMetrics(t *testing.T) {
	r := exampleRepo()
	var size, files, chunks float64
	for _, data := range r.chosen() {
		size += float64(len(data))
		files++
		chunks += float64(manifest.NumChunks(int64(len(data)), chunkSize))
	}
	_, open := serveBuckets(t)
	store := open("models", nil)
	m := stager.NewMetrics()
	run := func(source stager.Source) error {
		s := stager.New(stager.Config{Source: source, Store: store, Metrics: m, ChunkSize: chunkSize})
		_, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
		return err
	}
	if err := run(&memory{repo: r}); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"received_bytes_total": size, "stored_bytes_total sent": size, "verified_bytes_total": size, "files_total sent": files,
		"chunks_total": chunks, "model_bytes": size, "runs_total staged": 1,
	}
	if got := values(t, m); !maps.Equal(got, want) {
		t.Errorf("after a run: %v\nwant %v", got, want)
	}
	if err := run(&memory{repo: r}); err != nil {
		t.Fatal(err)
	}
	want["runs_total already"] = 1
	if got := values(t, m); !maps.Equal(got, want) {
		t.Errorf("after one with nothing to do: %v\nwant %v", got, want)
	}

	// The manifest is gone: every file is taken over.
	if err := store.Delete(t.Context(), manifest.Model{Repo: r.name, Commit: r.Commit()}.Key()); err != nil {
		t.Fatal(err)
	}
	m = stager.NewMetrics()
	if err := run(&memory{repo: r}); err != nil {
		t.Fatal(err)
	}
	want = map[string]float64{"stored_bytes_total reused": size, "verified_bytes_total": size, "files_total reused": files, "model_bytes": size, "runs_total staged": 1}
	if got := values(t, m); !maps.Equal(got, want) {
		t.Errorf("after one that takes over: %v\nwant %v", got, want)
	}

	m = stager.NewMetrics()
	m.Retried(stager.Retry{Of: "hub", Cause: stager.RateLimit, Err: errors.New("x")})
	if err := run(&memory{repo: r, listing: func([]stager.RemoteFile) []stager.RemoteFile { return nil }}); err != nil {
		t.Fatal(err) // it is staged: nothing is listed
	}
	want = map[string]float64{"runs_total already": 1, "retries_total rate_limit hub": 1, "model_bytes": size}
	if got := values(t, m); !maps.Equal(got, want) {
		t.Errorf("after a retry: %v\nwant %v", got, want)
	}
	if s := stager.New(stager.Config{Source: &memory{repo: r}, Store: store, Metrics: m}); s != nil {
		if _, err := s.Stage(t.Context(), manifest.Reference{Repo: "no/such"}); err == nil {
			t.Error("it succeeds")
		}
	}
	want["runs_total failed"] = 1
	if got := values(t, m); !maps.Equal(got, want) {
		t.Errorf("after a failure: %v\nwant %v", got, want)
	}
}

// TestMetricsResumed counts what an earlier run left apart from what this one sends; the events say the same.
func TestMetricsResumed(t *testing.T) {
	r := exampleRepo()
	var size float64
	for _, data := range r.chosen() {
		size += float64(len(data))
	}
	_, open := serveBuckets(t)
	store := open("models", nil)
	broken := &memory{repo: r, bytes: func(_ context.Context, path string, off int64, data []byte) (io.Reader, error) {
		if path == large && off >= 50*chunkSize {
			return nil, errors.New("the cable is cut")
		}
		return bytes.NewReader(data), nil
	}}
	if _, err := newStager(broken, store).Stage(t.Context(), manifest.Reference{Repo: r.name}); err == nil {
		t.Fatal("it succeeds")
	}
	m := stager.NewMetrics()
	var last stager.Event
	s := stager.New(stager.Config{Source: &memory{repo: r}, Store: store, Metrics: m, ChunkSize: chunkSize, Progress: func(e stager.Event) { last = e }})
	result, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
	if err != nil {
		t.Fatal(err)
	}
	got := values(t, m)
	reused := got["stored_bytes_total reused"]
	if reused != float64(result.Reused) || reused < 20*chunkSize || got["received_bytes_total"] != size-reused || got["stored_bytes_total sent"] != size-reused || got["verified_bytes_total"] != size {
		t.Errorf("%v, %d reused of %g", got, result.Reused, size)
	}
	if last.Reused != result.Reused || last.There != result.Reused || last.Fetched != result.Fetched || last.Stored != last.Total {
		t.Errorf("the last event: %+v", last)
	}
}
