package loader_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// TestKillTrials kills the worker at any moment of a load with readers on it: before it has begun, while
// chunks come, at the end and after it, and again while the next worker starts. The seed of a trial is
// its number; LOADER_TEST_TRIALS says how many there are, or "N-M" for which.
//
// A trial that fails may pass the next time: the moments are the machine's.
func TestKillTrials(t *testing.T) {
	mounttest.Need(t)
	first, last := 1, 24
	if s := os.Getenv("LOADER_TEST_TRIALS"); s != "" {
		if n, _ := fmt.Sscanf(s, "%d-%d", &first, &last); n < 2 {
			last, first = first, 1
		}
	}
	m := fetchtest.NewModel(t, "google/trial", map[string]int{"config.json": 7, "empty": 0, "model-1.safetensors": 30*chunk + 5, "model-2.safetensors": 12 * chunk, "sub/a": chunk - 1})
	var sum tally
	began := time.Now()
	bad := map[string]int{}
	for seed := first; seed <= last; seed++ {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			for _, line := range sum.trial(t, m, rand.New(rand.NewPCG(uint64(seed), 5))) {
				t.Error(line)
				words := strings.Fields(line)
				bad[strings.Join(words[:min(3, len(words))], " ")]++
			}
		})
	}
	t.Logf("%d trials in %v: %d kills, at which %d mounts were taken over and %d requests waited; %d reads were right, %d kinds were not",
		last-first+1, time.Since(began).Round(time.Second), sum.kills, sum.taken, sum.waited, sum.right, len(bad))
	for _, kind := range slices.Sorted(maps.Keys(bad)) {
		t.Logf("%s: %d", kind, bad[kind])
	}
}

// tally counts over all trials.
type tally struct{ right, kills, taken, waited int }

// trial returns what the readers of one trial say that went wrong.
func (c *tally) trial(t *testing.T, m *fetchtest.Model, random *rand.Rand) (bad []string) {
	dir := t.TempDir()
	writeBucket(t, dir, m)
	hold(t, dir, fmt.Sprintf("slow %d", 1+random.IntN(20_000)))
	k := startKept(t, dir)
	at := target(t)
	if _, err := k.Publish(t.Context(), m.Ref(), at); err != nil {
		t.Fatal(err)
	}
	var reading []*reading
	for _, i := range random.Perm(len(readers))[:2] {
		reading = append(reading, startReading(t, readers[i], at, dir, m))
	}
	for range 1 + random.IntN(3) {
		time.Sleep(time.Duration(random.IntN(120_000)) * time.Microsecond)
		k.killWorker(t)
		c.kills++
		k.next(t)
	}
	for _, r := range reading {
		n, what, err := r.result()
		c.right, bad = c.right+n, append(bad, what...)
		if err != nil {
			bad = append(bad, fmt.Sprintf("reader ended: %v", err))
		}
	}
	check(t, at, m)
	if err := k.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Error(err)
	}
	for _, found := range regexp.MustCompile(`taken over: .* waiting_requests=(\d+)`).FindAllSubmatch(log, -1) {
		n, _ := strconv.Atoi(string(found[1]))
		c.taken, c.waited = c.taken+1, c.waited+n
	}
	return bad
}
