package stager_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// cleanRun stages without a fault, and returns the requests and what the bucket has.
func cleanRun(t *testing.T) (calls []call, want map[string]string) {
	t.Helper()
	dir := fastDir(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, newTinyRepo())
		defer w.close()
		w.begin(nil)
		if _, err := w.process(t.Context()); err != nil {
			t.Fatal(err)
		}
		calls, _, _, _ = w.sofar()
		want = w.contents()
	})
	return calls, want
}

// limit is when a run hangs, on a clock that costs nothing.
const limit = 6 * time.Hour

var errHangs = errors.New("the run hangs")

// readable checks that an error is one line for a person, without a secret.
func readable(err error) string {
	text := err.Error()
	switch {
	case strings.ContainsAny(text, "\n\r\x00"):
		return "more than a line"
	case strings.Contains(text, tinyToken), strings.Contains(text, "Signature="):
		return "a secret"
	case len(text) > 1200:
		return fmt.Sprintf("%d bytes", len(text))
	case !strings.Contains(text, "google/gemma-test"), !strings.Contains(text, "gs://models"):
		return "without the model or the bucket"
	case errors.Is(err, errHangs):
		return "it hangs"
	}
	return ""
}

// allFaultsVariable makes the tests try every case (TestFaultMatrix), and as many seeds as it says
// (TestFaultsAtRandom). That takes minutes.
const allFaultsVariable = "HEADSTART_TEST_FAULTS"

// TestFaultMatrix lets every request of a run meet every fault of the table.
func TestFaultMatrix(t *testing.T) {
	calls, want := cleanRun(t)
	seen := make(map[string]bool)
	total, cases, healed, ended := 0, 0, 0, 0
	stride := 31
	if os.Getenv(allFaultsVariable) != "" {
		stride = 1
	}
	for _, c := range calls {
		if seen[c.String()] {
			t.Fatalf("%s twice", c)
		}
		seen[c.String()] = true
		for i := range faultTable {
			f := &faultTable[i]
			if f.on != nil && !f.on(c.kind) {
				continue
			}
			// The stride has no divisor in common with the number of faults: each one comes at some requests.
			if total++; total%stride != 0 {
				continue
			}
			cases++
			t.Run(strings.ReplaceAll(fmt.Sprintf("%s %s", c, f.name), "/", ":"), func(t *testing.T) { // -run splits names at slashes
				dir := fastDir(t)
				synctest.Test(t, func(t *testing.T) {
					if oneFault(t, dir, c, f, want) {
						healed++
					} else {
						ended++
					}
				})
			})
		}
	}
	t.Logf("%d requests, %d faults, %d of %d cases: %d come through, %d end with an error and come through when run again", len(calls), len(faultTable), cases, total, healed, ended)
}

func oneFault(t *testing.T, dir string, c call, f *fault, want map[string]string) (healed bool) {
	w := newWorld(t, dir, newTinyRepo())
	defer w.close()
	w.begin(func(at call) *fault {
		if at == c {
			return f
		}
		return nil
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errHangs)
	defer cancel()
	_, err := w.process(ctx)
	if _, met, _, _ := w.sofar(); len(met) == 0 {
		t.Fatal("the request does not come")
	}
	if d := w.tolerable(w.contents(), want); d != "" {
		t.Errorf("%s (%v)", d, err)
	}
	if err != nil {
		if bad := readable(err); bad != "" {
			t.Errorf("the error has %s: %v", bad, err)
		}
		if f.heals != nil && f.heals(c.kind) {
			t.Errorf("it does not come through: %v", err)
		}
		w.begin(nil)
		if _, err := w.process(ctx); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	d := differs(w.contents(), want)
	if d != "" && (c.kind == remove || c.kind == list) && !(f.heals != nil && f.heals(c.kind)) && strings.HasSuffix(d, " is left over") {
		// A service that lies about what it has removed, or has, is found out by the next run.
		w.begin(nil)
		if r, err := w.process(ctx); err != nil || !r.Already {
			t.Errorf("tidying up: %+v, %v", r, err)
		}
		d = differs(w.contents(), want)
	}
	if d != "" {
		t.Errorf("in the end: %s", d)
	}
	if _, _, leaked, _ := w.sofar(); len(leaked) > 0 {
		t.Errorf("the token is shown to %q", leaked)
	}
	return err == nil
}

// TestFaultsForever lets everything that one server answers meet the same fault: a portal that must be logged
// in to, a proxy that strips ranges, a service that is down. A run ends, after a bounded number of requests.
func TestFaultsForever(t *testing.T) {
	_, want := cleanRun(t)
	stride := 37
	if os.Getenv(allFaultsVariable) != "" {
		stride = 1
	}
	total, cases, through := 0, 0, 0
	for _, place := range []struct {
		name string
		on   func(kind) bool
	}{{"hub", only(info, tree, resolve)}, {"files", files}, {"bucket", not(ofHub)}} {
		for i := range faultTable {
			f := &faultTable[i]
			if total++; total%stride != 0 {
				continue
			}
			cases++
			t.Run(place.name+" "+f.name, func(t *testing.T) {
				dir := fastDir(t)
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, dir, newTinyRepo())
					defer w.close()
					w.begin(func(c call) *fault {
						if place.on(c.kind) && (f.on == nil || f.on(c.kind)) {
							return f
						}
						return nil
					})
					ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errHangs)
					defer cancel()
					_, err := w.process(ctx)
					made, _, _, _ := w.sofar()
					calls := len(made)
					if calls > 500 {
						t.Errorf("%d requests", calls)
					}
					if d := w.tolerable(w.contents(), want); d != "" {
						t.Errorf("%s (%v)", d, err)
					}
					if err == nil {
						through++
					} else if bad := readable(err); bad != "" {
						t.Errorf("the error has %s: %v", bad, err)
					}
					w.begin(nil)
					if _, err := w.process(t.Context()); err != nil {
						t.Errorf("again: %v", err)
					}
					if d := differs(w.contents(), want); d != "" {
						t.Errorf("in the end: %s", d)
					}
					if _, _, leaked, _ := w.sofar(); len(leaked) > 0 {
						t.Errorf("the token is shown to %q", leaked)
					}
				})
			})
		}
	}
	t.Logf("%d of %d cases: %d come through in spite of it", cases, total, through)
}

// TestFaultsAtRandom lets runs meet faults at random, several at a time, be killed, and come two at once. The
// last run meets none, and then the bucket must be as if none had ever been. It is a function of the seed, but
// for what is due to the order of goroutines.
func TestFaultsAtRandom(t *testing.T) {
	_, want := cleanRun(t)
	seeds := 24
	if n, err := strconv.Atoi(os.Getenv(allFaultsVariable)); err == nil && n > 0 {
		seeds = n
	}
	var sum tally
	for seed := range seeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			dir := fastDir(t)
			synctest.Test(t, func(t *testing.T) { randomFaults(t, dir, uint64(seed), want, &sum) })
		})
	}
	t.Logf("%d seeds, %d runs, %d of them killed, %d in pairs: %d faults met, %d runs came through; wrong bytes of an earlier run were found out %d times by the run without faults", seeds, sum.runs, sum.killed, sum.paired, sum.met, sum.through, sum.late)
}

type tally struct{ runs, killed, paired, met, through, late int }

// kindFaults are those that tell no lie: after them no byte is fetched again that had arrived.
func kindFaults() []*fault {
	var kind []*fault
	for i := range faultTable {
		if f := &faultTable[i]; f.heals != nil && f.heals(insert) {
			kind = append(kind, f)
		}
	}
	return kind
}

func anyFaults() []*fault {
	faults := make([]*fault, len(faultTable))
	for i := range faultTable {
		faults[i] = &faultTable[i]
	}
	return faults
}

func randomFaults(t *testing.T, dir string, seed uint64, want map[string]string, sum *tally) {
	random := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, dir, newTinyRepo())
	defer w.close()
	faults, honest := anyFaults(), seed%2 == 0
	if honest {
		faults = kindFaults()
	}
	again := int64(0) // bytes that may be sent a second time
	for range 2 + random.IntN(6) {
		processes := 1 + random.IntN(2)
		rate := []int{3, 10, 40}[random.IntN(3)]
		deadAt := -1 // the request at which the processes are killed
		if random.IntN(3) == 0 {
			deadAt = random.IntN(60)
		}
		ctx, kill := context.WithTimeoutCause(t.Context(), limit, errHangs)
		dice := rand.New(rand.NewPCG(seed, random.Uint64()))
		w.begin(func(c call) *fault { // under the world's lock
			if len(w.calls)-1 == deadAt {
				kill()
			}
			if f := faults[dice.IntN(len(faults))]; dice.IntN(rate) == 0 && (f.on == nil || f.on(c.kind)) {
				return f
			}
			return nil
		})
		var group sync.WaitGroup
		errs := make([]error, processes)
		for i := range errs {
			group.Go(func() { _, errs[i] = w.process(ctx) })
		}
		group.Wait()
		sum.runs += processes
		again += int64(processes) * w.repo.headers()
		if processes > 1 {
			sum.paired += processes
		}
		for _, err := range errs {
			if err == nil {
				sum.through++
				continue
			}
			if errors.Is(err, context.Canceled) {
				sum.killed++
			} else if bad := readable(err); bad != "" {
				t.Errorf("the error has %s: %v", bad, err)
			}
			again += 8 * tinyChunk // a run that ends has so much in flight at most
		}
		kill()
		if processes > 1 {
			again += w.repo.size() // two that run at once do not know of each other
		}
		_, met, _, _ := w.sofar()
		again += int64(len(met)) * tinyChunk
		sum.met += len(met)
		if d := w.tolerable(w.contents(), want); d != "" {
			t.Errorf("%s, after %q: %v", d, met, errs)
		}
	}
	w.begin(nil)
	again += w.repo.headers()
	_, err := w.process(t.Context())
	if !honest && errors.As(err, new(*manifest.MismatchError)) {
		// Wrong bytes that came before a kill are parts now: they are found out when the file is whole, and removed.
		sum.late++
		_, err = w.process(t.Context())
	}
	if err != nil {
		t.Errorf("the run without faults: %v", err)
	}
	if d := differs(w.contents(), want); d != "" {
		t.Errorf("in the end: %s", d)
	}
	if _, _, _, sent := w.sofar(); honest && sent > w.repo.size()+again {
		t.Errorf("the Hub sent %d bytes for %d; at most %d were to be sent again", sent, w.repo.size(), again)
	}
	if _, _, leaked, _ := w.sofar(); len(leaked) > 0 {
		t.Errorf("the token is shown to %q", leaked)
	}
}
