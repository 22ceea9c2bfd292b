package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

// held is how far a request may come: what begins at this byte or behind it hangs while hang is set.
const held = 32 << 20

// slowRoad is a Hub and a bucket that let the first part of a file through and hang at the others.
type slowRoad struct {
	hangHub, hangBucket atomic.Bool
	hung                chan struct{} // told of each request that hangs
	refetched           atomic.Int64  // ranges before held that were asked for once they were stored
	stored              chan struct{} // told when the first part is stored
	asked               chan struct{} // told of each request to the bucket
	env                 []string
}

func newSlowRoad(t *testing.T) *slowRoad {
	root := t.TempDir()
	if err := writeShard(filepath.Join(root, "acme", "large"), 100<<20); err != nil {
		t.Fatal(err)
	}
	dir, err := hub.NewDir(root)
	if err != nil {
		t.Fatal(err)
	}
	h := hub.New(hub.Config{Find: dir})
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	road := &slowRoad{hung: make(chan struct{}, 1000), stored: make(chan struct{}, 1000), asked: make(chan struct{}, 1000)}
	api, cdn, objects := httptest.NewServer(h.Handler()), httptest.NewServer(road.hub(h.CDN())), httptest.NewServer(road.bucket(b))
	h.SetCDN(cdn.URL)
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{api, cdn, objects} {
			s.CloseClientConnections()
			s.Close()
		}
		b.Close()
	})
	road.env = append(os.Environ(), "HF_ENDPOINT="+api.URL, "STORAGE_EMULATOR_HOST="+objects.URL, "HEADSTART_BUCKET=gs://models", "HF_HOME="+t.TempDir(), "HF_TOKEN=")
	return road
}

func (s *slowRoad) hang(r *http.Request) {
	s.hung <- struct{}{}
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func (s *slowRoad) hub(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var from, to int64
		_, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		switch {
		case err != nil, from == 0 && to < 1<<20: // a header, which each run looks at
		case from >= held && s.hangHub.Load():
			s.hang(r)
		case from < held:
			s.refetched.Add(1)
		}
		next.ServeHTTP(w, r)
	})
}

// bucket knows a part by its name.
func (s *slowRoad) bucket(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked <- struct{}{}
		var from int64 = -1
		if r.Method == http.MethodPut {
			fmt.Sscanf(path.Base(r.URL.Path), "part-%016x", &from)
		}
		if from >= held && s.hangBucket.Load() {
			go io.Copy(io.Discard, r.Body) // so that the client's leaving is noticed
			s.hang(r)
		}
		next.ServeHTTP(w, r)
		if from == 0 {
			s.stored <- struct{}{}
		}
	})
}

// TestSIGTERM ends a real process in the middle, before a Hub and before a bucket that hang: by itself,
// with the code that says so, and what it had stored is not sent again.
func TestSIGTERM(t *testing.T) {
	for name, set := range map[string]func(*slowRoad, bool){
		"hub":    func(s *slowRoad, on bool) { s.hangHub.Store(on) },
		"bucket": func(s *slowRoad, on bool) { s.hangBucket.Store(on) },
	} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, os.Interrupt.(syscall.Signal)} {
			t.Run(name+" "+sig.String(), func(t *testing.T) {
				road := newSlowRoad(t)
				set(road, true)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				var stdout, stderr bytes.Buffer
				cmd := exec.CommandContext(ctx, "headstart", "stage", "acme/large", "--json")
				cmd.Env, cmd.Stdout, cmd.Stderr = road.env, &stdout, &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				for _, c := range []chan struct{}{road.stored, road.hung} {
					select {
					case <-c:
					case <-ctx.Done():
						t.Fatal("it does not come so far")
					}
				}
				began := time.Now()
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				t.Logf("ended %s after the signal", time.Since(began).Round(time.Millisecond))
				if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
					t.Errorf("code %d: %s", code, stderr.String())
				}
				last := lastEvent(t, stdout.String())
				if last.Event != "error" || last.Code != exitInterrupted || last.Error != "interrupted; run it again to go on" {
					t.Errorf("the last event is %+v", last)
				}

				set(road, false)
				before := road.refetched.Load()
				again := exec.CommandContext(ctx, "headstart", "stage", "acme/large", "--json")
				again.Env = road.env
				out, err := again.Output()
				if err != nil {
					t.Fatal(err)
				}
				last = lastEvent(t, string(out))
				if last.Event != "staged" || last.Reused < held || last.Fetched+last.Reused != last.Bytes {
					t.Errorf("the next run: %+v", last)
				}
				if n := road.refetched.Load() - before; n != 0 {
					t.Errorf("%d ranges that were stored are fetched again", n)
				}
			})
		}
	}
}

// TestSecondSignal ends at once a process whose clean end takes long.
func TestSecondSignal(t *testing.T) {
	road := newSlowRoad(t)
	road.hangHub.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Nobody reads its events: it hangs at one, and no cancellation reaches that.
	fill(t, w)
	cmd := exec.CommandContext(ctx, "headstart", "stage", "acme/large", "--json")
	cmd.Env, cmd.Stdout = road.env, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-road.asked // from here on it minds signals
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	signals := 0
	for {
		select {
		case <-ended:
			if status := cmd.ProcessState.Sys().(syscall.WaitStatus); signals < 2 || !status.Signaled() || status.Signal() != syscall.SIGTERM {
				t.Errorf("ended with %v after %d signals", cmd.ProcessState, signals)
			}
			return
		case <-tick.C:
			if signals++; signals > 300 {
				t.Fatal("it does not end")
			}
			_ = cmd.Process.Signal(syscall.SIGTERM) // a shell that runs the test in the background has it ignore SIGINT
		}
	}
}

// fill leaves no room in a pipe.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	for {
		_ = w.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := w.Write(make([]byte, 4<<10)); err != nil {
			return
		}
	}
}

// endEvent is what the last event of a stage has.
type endEvent struct {
	Event, Error           string
	Code                   int
	Bytes, Fetched, Reused int64
}

// lastEvent reads JSON lines, all of them, and returns the last.
func lastEvent(t *testing.T, out string) endEvent {
	t.Helper()
	var last endEvent
	for line := range strings.Lines(out) {
		var e endEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Event == "" {
			t.Errorf("not an event: %.200q, %v", line, err)
		}
		last = e
	}
	return last
}
