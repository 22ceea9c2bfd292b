package stager_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/file"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
)

// roadVariable makes the test binary a process that stages: "HUB BUCKET", a URL and a URL or a directory.
const roadVariable = "HEADSTART_TEST_STAGE_ROAD"

// runner stages as fast as it can.
func runner(road string) int {
	endpoint, to, _ := strings.Cut(road, " ")
	source, err := hf.New(hf.Config{Endpoint: endpoint})
	if err == nil {
		var store interface {
			stager.Store
			Close() error
		}
		if server, name, ok := strings.Cut(to, " "); ok {
			store, err = gcs.New(context.Background(), gcs.Config{Bucket: name, Emulator: server, Wait: time.Millisecond})
		} else {
			store, err = file.New(to)
		}
		if err == nil {
			defer store.Close()
			_, err = newStager(source, store).Stage(context.Background(), manifest.Reference{Repo: "google/gemma-test"})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runRoad(t *testing.T, road string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roadVariable+"="+road)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// counted counts the bytes of files that a handler sends.
func counted(h http.Handler, sent *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			h.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(&adding{w, sent}, r)
	})
}

type adding struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (a *adding) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.sent.Add(int64(n))
	return n, err
}

func (a *adding) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// TestKilledAtRandom kills real processes with SIGKILL at random moments, one at a time or two that stage the
// same model, and lets the next ones go on until one comes through. The bucket is then as if none had died,
// and the Hub has sent each byte once, but for what was in flight.
func TestKilledAtRandom(t *testing.T) {
	r := exampleRepo()
	size, headers := int64(0), int64(0) // headers are what each process looks at first
	for path, data := range r.chosen() {
		size += int64(len(data))
		if strings.HasSuffix(path, ".safetensors") {
			headers += min(int64(len(data)), 64<<10)
		}
	}
	h := hub.New(hub.Config{}, r)
	var sent atomic.Int64
	api, cdn := httptest.NewServer(counted(h.Handler(), &sent)), httptest.NewServer(counted(h.CDN(), &sent))
	t.Cleanup(api.Close)
	t.Cleanup(cdn.Close)
	h.SetCDN(cdn.URL)
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	cloud := httptest.NewServer(b)
	t.Cleanup(cloud.Close)

	want := 16
	if n, err := strconv.Atoi(os.Getenv(allFaultsVariable)); err == nil && n > 0 {
		want = n
	}
	random := rand.New(rand.NewPCG(4, 5))
	whole := 500 * time.Millisecond // of one run, to begin with
	kills, pairs, worst := 0, 0, 0.0
	for round := 0; kills < want; round++ {
		// The places: a road for the processes, and a Store of our own to look at the end.
		name := fmt.Sprintf("models-%d", round)
		var road string
		var open func() stager.Store
		if round%2 == 0 {
			if err := b.CreateBucket(name); err != nil {
				t.Fatal(err)
			}
			road = api.URL + " " + cloud.URL + " " + name
			open = func() stager.Store {
				s, err := gcs.New(t.Context(), gcs.Config{Bucket: name, Emulator: cloud.URL})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}
		} else {
			dir := t.TempDir()
			road, open = api.URL+" "+dir, func() stager.Store { return openDir(t, dir) }
		}
		sent.Store(0)
		again := headers // of the run at the end
		for done := false; !done; {
			processes := []*exec.Cmd{runRoad(t, road)}
			again += headers
			if random.IntN(3) == 0 {
				processes = append(processes, runRoad(t, road))
				again += size + headers // they do not know of each other
				pairs++
			}
			began := time.Now()
			timers := make([]*time.Timer, len(processes))
			for i, p := range processes {
				timers[i] = time.AfterFunc(time.Duration(random.Int64N(int64(whole)*5/4)), func() { p.Process.Kill() })
			}
			for i, p := range processes {
				err := p.Wait()
				timers[i].Stop()
				switch {
				case err == nil:
					done = true
					whole = (whole + time.Since(began)) / 2
				case p.ProcessState.ExitCode() > 0:
					t.Errorf("%s: a process that was not killed: %v", road, err)
					return
				default:
					kills++
					again += 8 * chunkSize
				}
			}
			if !done { // a busy machine may take longer to start a process than it has to live
				whole += whole / 4
			}
		}
		// One may have died after another had tidied up and finished: that is left to whoever comes next.
		if err := runRoad(t, road).Wait(); err != nil {
			t.Errorf("%s: the last run: %v", road, err)
		}
		if extra := sent.Load() - size; extra > again {
			t.Errorf("%s: %d bytes were sent for %d, at most %d of them twice", road, sent.Load(), size, again)
		} else {
			worst = max(worst, float64(extra)/float64(size))
		}
		checkStaged(t, open(), r)
	}
	t.Logf("%d processes killed, %d pairs; the Hub sent at most %.2f of the model more than once", kills, pairs, worst)
}
