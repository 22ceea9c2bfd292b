package stager

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestTuner lets it find its way on links that are modelled: the rate that so many reads in flight get.
func TestTuner(t *testing.T) {
	capped := func(stream, total float64) func(int) float64 {
		return func(n int) float64 { return min(float64(n)*stream, total) }
	}
	for name, test := range map[string]struct {
		rate     func(n int) float64
		crowded  bool
		low, top int // the width it ends with, and the widest it tried
	}{
		"a cap on each stream":        {capped(10, 1e9), true, 64, 64},
		"a cap and a link":            {capped(10, 250), true, 32, 64},
		"a link":                      {capped(1000, 100), true, 8, 16},
		"the processor":               {capped(1000, 100), false, 8, 8},
		"many reads are in the way":   {func(n int) float64 { return 1000 / float64(n) }, true, 8, 16},
		"a little better with each":   {func(n int) float64 { return 100 + float64(n)/2 }, true, 8, 16},
		"nothing comes":               {capped(0, 0), true, 8, 64},
		"it waits for something else": {capped(10, 1e9), false, 8, 8},
	} {
		u, widest := newTuner(8, 8, 64), 0
		var widths []int
		for range 1000 {
			widths = append(widths, u.next(test.rate(u.width), test.crowded))
			widest = max(widest, u.width)
		}
		slices.Sort(widths)
		if median := widths[len(widths)/2]; name != "nothing comes" && (median != test.low || widest != test.top) || widths[0] < 8 || widest > 64 {
			t.Errorf("%s: mostly %d, at most %d, want %d and %d", name, median, widest, test.low, test.top)
		}
	}
}

// TestTunerIsQuick counts the windows until it has what it needs, and those it spends on vain trials after.
func TestTunerIsQuick(t *testing.T) {
	u, windows := newTuner(8, 8, 64), 0
	for ; u.width < 64 && windows < 100; windows++ {
		u.next(float64(u.width), true)
	}
	if windows > 7 {
		t.Errorf("%d windows", windows)
	}
	u, wide := newTuner(8, 8, 64), 0
	for range 1000 {
		if u.next(100, true) > 8 {
			wide++
		}
	}
	if wide > 30 {
		t.Errorf("%d of 1000 windows are spent on trials", wide)
	}
}

// TestTunerFollows goes back when the cap on the streams is lifted.
func TestTunerFollows(t *testing.T) {
	u := newTuner(8, 8, 64)
	for range 100 {
		u.next(float64(u.width), true)
	}
	before, after := u.width, make(map[int]int)
	for i := range 1000 {
		if u.next(100, true); i > 200 {
			after[u.width]++
		}
	}
	if before != 64 || after[8] < 750 {
		t.Errorf("%d, then %v", before, after)
	}
}

func TestRangeSize(t *testing.T) {
	const MiB = 1 << 20
	for _, test := range []struct {
		size    int64
		width   int
		buffers int64
		want    int64
	}{
		{16 * MiB, 8, 24, 16 * MiB}, {16 * MiB, 12, 24, 16 * MiB}, {16 * MiB, 16, 24, 8 * MiB}, {16 * MiB, 32, 24, 4 * MiB},
		{16 * MiB, 64, 24, 2 * MiB}, {16 * MiB, 500, 24, 2 * MiB}, {16 * MiB, 8, 2, 2 * MiB}, {16 * MiB, 8, 1, 2 * MiB}, {5 * MiB, 64, 24, 5 * MiB / 2},
		{3 * MiB, 64, 24, 3 * MiB}, {1, 64, 24, 1}, {4*MiB + 1, 64, 24, 2*MiB + 1}, {64 << 10, 64, 1, 64 << 10},
	} {
		if got := rangeSize(test.size, test.width, test.buffers, 1<<40); got != test.want {
			t.Errorf("%d bytes, %d reads, %d buffers: %d, want %d", test.size, test.width, test.buffers, got, test.want)
		}
	}
}

// TestRangesGrow counts the requests for the first chunks of a transfer: twelve more than one each.
func TestRangesGrow(t *testing.T) {
	const chunk = 16 << 20
	var got []int64
	for asked := int64(0); asked < 8*chunk; asked += chunk {
		got = append(got, chunk/rangeSize(chunk, 8, 24, asked))
	}
	if want := []int64{8, 4, 2, 2, 1, 1, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("the chunks are asked for in %d ranges, want %d", got, want)
	}
}

func TestTurns(t *testing.T) {
	small := func(pieces int) *job { return &job{pieces: make([]piece, pieces)} }
	large := func(pieces int) *job { j := small(pieces); j.upload = nobody{}; return j }
	for name, test := range map[string]struct {
		jobs   []*job
		beside int
		want   [][2]int
	}{
		"none":           {nil, 2, nil},
		"small ones":     {[]*job{small(1), small(0), small(1)}, 2, [][2]int{{0, 0}, {1, 0}, {2, 0}}},
		"small and one":  {[]*job{small(1), large(3)}, 2, [][2]int{{0, 0}, {1, 0}, {1, 1}, {1, 2}}},
		"two":            {[]*job{large(3), large(3)}, 2, [][2]int{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}, {1, 2}}},
		"two, one core":  {[]*job{large(2), large(2)}, 1, [][2]int{{0, 0}, {0, 1}, {1, 0}, {1, 1}}},
		"one takes over": {[]*job{large(4), large(2), large(2)}, 2, [][2]int{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}, {2, 0}, {0, 3}, {2, 1}}},
	} {
		var got [][2]int
		for j, i := range turns(test.jobs, test.beside) {
			got = append(got, [2]int{slices.Index(test.jobs, j), i})
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	for range turns([]*job{small(1), large(3), large(3)}, 2) {
		break // it stops when told to
	}
}

type nobody struct{ Upload }

// TestGate changes how many are let through, and counts how long somebody stood there.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2)
		entered := 0
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() {
			for {
				if err := g.enter(ctx); err != nil {
					done <- err
					return
				}
				entered++
			}
		}()
		step := func(what string, want int, waited time.Duration) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			if crowd := g.crowd(); entered != want || crowd != waited {
				t.Errorf("%s: %d entered, want %d; waited %v, want %v", what, entered, want, crowd, waited)
			}
		}
		step("at first", 2, time.Second)
		g.resize(5)
		step("wider", 5, time.Second)
		g.leave()
		g.leave()
		step("two left", 7, time.Second)
		g.resize(3)
		g.leave()
		step("narrower", 7, time.Second)
		g.leave()
		g.leave()
		step("three inside", 8, time.Second)
		cancel(errors.New("enough"))
		if err := <-done; err == nil || err.Error() != "enough" {
			t.Error(err)
		}
	})
}
