package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// TestWatch follows a run of two files, of which one was begun by an earlier run.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		w := &watch{events: &out}
		model := manifest.Model{Repo: "acme/tiny", Commit: strings.Repeat("a", 40)}
		at := stager.Event{Kind: stager.Planned, Model: model, Total: 300, There: 100, Files: 2}
		w.Event(at)
		move := func(path string, size, fetched, stored, reused int64) {
			at.Kind, at.Path, at.Size = stager.Advanced, path, size
			at.Fetched, at.Stored, at.Reused = at.Fetched+fetched, at.Stored+stored, at.Reused+reused
			w.Event(at)
		}
		move("a", 200, 0, 100, 100)
		move("b", 100, 40, 0, 0)
		move("a", 200, 60, 0, 0)
		want := sample{Done: 100, Total: 300, Arrived: 100, Of: "0 of 2 files", Files: []fileSample{{"a", 100, 160, 200}, {"b", 0, 40, 100}}}
		checkSample(t, w.Sample(), want)

		// Two waits at once: the longer one is shown, until it is over.
		w.Retried(stager.Retry{Of: "hub", Cause: stager.RateLimit, Wait: 55 * time.Second, Err: errors.New("rate limit")})
		w.Retried(stager.Retry{Of: "bucket", Cause: stager.Status, Wait: 4 * time.Second, Err: errors.New("status 503\x1b[2J\nx")})
		want.Note = "waiting for the Hub: rate limit, 55s left"
		checkSample(t, w.Sample(), want)
		time.Sleep(30 * time.Second)
		want.Note = "waiting for the Hub: rate limit, 25s left"
		checkSample(t, w.Sample(), want)
		time.Sleep(25 * time.Second)
		want.Note = ""
		checkSample(t, w.Sample(), want)

		move("b", 100, 60, 0, 0)
		move("a", 200, 40, 200, 0)
		at.Kind, at.Path, at.Size, at.SHA256 = stager.FileStored, "a", 200, manifest.Digest{1}
		w.Event(at)
		want = sample{Done: 300, Total: 300, Arrived: 200, Of: "1 of 2 files", Files: []fileSample{{"b", 0, 100, 100}}, Still: "all has arrived, but the bucket has taken nothing"}
		checkSample(t, w.Sample(), want)

		var kinds []string
		for line := range strings.Lines(out.String()) {
			var e struct {
				Event, Of, Error string
				Seconds          float64
				Wait             float64 `json:"wait_seconds"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			if e.Event == "file" && e.Seconds != 55 || e.Of == "hub" && e.Wait != 55 || strings.ContainsAny(e.Error, "\x1b\n") {
				t.Errorf("event %s", line)
			}
			kinds = append(kinds, e.Event)
		}
		if got := strings.Join(kinds, " "); got != "planned retry retry file" {
			t.Errorf("events: %s", got)
		}
	})
}

func checkSample(t *testing.T, got, want sample) {
	t.Helper()
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if !bytes.Equal(g, w) {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

// TestStillness says who does not move.
func TestStillness(t *testing.T) {
	var s stillness
	start := time.Now()
	for _, step := range []struct {
		after int // seconds
		at    sample
		want  string
	}{
		{0, sample{}, ""},
		{9, sample{}, ""},
		{20, sample{}, "nothing has arrived for 20s"},
		{21, sample{Arrived: 1}, ""},
		{35, sample{Arrived: 1, Still: "the bucket has taken nothing"}, "the bucket has taken nothing for 14s"},
		{36, sample{Arrived: 1, Done: 1}, ""},
	} {
		if got := s.add(start.Add(time.Duration(step.after)*time.Second), step.at); got != step.want {
			t.Errorf("after %d s: %q, want %q", step.after, got, step.want)
		}
	}
}

// TestObserved asks for the metrics while the work goes on and reads the file after it.
func TestObserved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stage.prom")
	for _, end := range []error{nil, stager.Fail(manifest.ErrInvalid, "wrong")} {
		o, err := newObserved("acme/tiny", file)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(o.handler())
		get := func(path string) string {
			r, err := http.Get(server.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			body, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Errorf("%s: status %d, %v", path, r.StatusCode, err)
			}
			return string(body)
		}
		err = o.During(t.Context(), process{Stderr: io.Discard}, "127.0.0.1:0", func(context.Context) error {
			if body := get("/metrics"); !strings.Contains(body, "\nheadstart_stage_received_bytes_total{model=\"acme/tiny\"} 0\n") || !strings.Contains(body, "\ngo_goroutines ") || !strings.Contains(body, "\nheadstart_build_info{") {
				t.Errorf("/metrics: %s", body)
			}
			if body := get("/healthz"); body != "ok\n" {
				t.Errorf("/healthz: %q", body)
			}
			return end
		})
		server.Close()
		if !errors.Is(err, end) || err != nil && end == nil {
			t.Errorf("it ends with %v, want %v", err, end)
		}
		if problems, err := testutil.GatherAndLint(o.own); err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code := map[bool]string{true: "0", false: "5"}[end == nil]
		if !strings.Contains(string(data), "headstart_stage_exit_code{model=\"acme/tiny\"} "+code+"\n") {
			t.Errorf("the file:\n%s", data)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left beside the file: %v, %v", left, err)
	}
	if last, err := lastSuccess(file, "acme/other"); last != 0 || err != nil {
		t.Errorf("another model's last success: %v, %v", last, err)
	}
}
