package fetch

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The tuner ends up where more streams bring nothing, whatever limits them.
func TestTuner(t *testing.T) {
	for name, c := range map[string]struct {
		rate        func(width int) float64
		least, most int // where it must be for nearly all of the time
	}{
		"a cap on each stream":     {func(w int) float64 { return float64(w) }, 64, 64},
		"a link that 8 fill":       {func(w int) float64 { return float64(min(w, 8)) }, 4, 16},
		"a link that 20 fill":      {func(w int) float64 { return float64(min(w, 20)) }, 16, 32},
		"a processor that one has": {func(w int) float64 { return 1 }, 2, 16},
		"a server that is choked":  {func(w int) float64 { return 1 / float64(w) }, 2, 4},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			tuner := newTuner(8, 2, 64)
			out, width := 0, 8
			const n = 2000
			for i := range n {
				width = tuner.next(window{rate: c.rate(width) * (0.95 + random.Float64()/10), ended: 100, crowded: true})
				if width < 2 || width > 64 {
					t.Fatalf("width %d", width)
				}
				if i > 40 && (width < c.least || width > c.most) {
					out++
				}
			}
			if out > n/10 {
				t.Errorf("%d of %d windows were not from %d to %d wide", out, n, c.least, c.most)
			}
		})
	}
}

// The first windows are short, and few: that of the beginning, one to compare with, and one for each doubling
// whose streams are slow for themselves, though new ones bring nothing in half of the window that they come in.
func TestTunerRises(t *testing.T) {
	for name, c := range map[string]struct {
		rate    func(width int) float64
		windows int
		want    int
	}{
		"a cap on each stream":    {func(w int) float64 { return float64(w) }, 5, 64},
		"a link that 20 fill":     {func(w int) float64 { return float64(min(w, 20)) }, 7, 32},
		"a link that 8 fill":      {func(w int) float64 { return float64(min(w, 8)) }, 5, 8},
		"fewer would do the same": {func(int) float64 { return 1 }, 5, 8},
	} {
		t.Run(name, func(t *testing.T) {
			tuner := newTuner(8, 2, 64)
			width, before := 8, 8
			for i := range c.windows {
				if !tuner.rising {
					t.Errorf("no rise in window %d", i)
				}
				now := (c.rate(before) + c.rate(width)) / 2
				before = width
				width = tuner.next(window{rate: now, ended: 100, crowded: true})
			}
			if width != c.want || c.want < 64 && tuner.rising {
				t.Errorf("%d streams, rising %t", width, tuner.rising)
			}
		})
	}
}

// Where the rise has shown that all streams are needed, fewer are tried seldom, and given up in the window in
// which the rate falls.
func TestTunerSpares(t *testing.T) {
	tuner := newTuner(8, 2, 64)
	width, before := 8, 8
	var fewer []int
	for i := range 400 {
		now := (float64(before) + float64(width)) / 2
		before = width
		width = tuner.next(window{rate: now, ended: 100, crowded: true})
		if i > 4 && width < 64 {
			fewer = append(fewer, i)
		}
	}
	if want := []int{23, 42, 77, 144, 275}; !slices.Equal(fewer, want) {
		t.Errorf("windows %v, want %v", fewer, want)
	}
}

// On a link so slow that a chunk takes many windows fewer streams are not tried: the rate would fall when
// nobody looks any more.
func TestTunerOnASlowLink(t *testing.T) {
	tuner := newTuner(8, 2, 64)
	for i := range 1000 {
		if got := tuner.next(window{rate: 100, ended: i % 2, crowded: true}); got < 8 {
			t.Fatalf("window %d: %d", i, got)
		}
	}
}

// Where a short window has a handful of reads the rise ends: twice the bytes in the next one are chance.
func TestTunerDoubtsFewBytes(t *testing.T) {
	for few := range 5 {
		tuner := newTuner(8, 2, 64)
		for i := range 5 {
			width := tuner.next(window{rate: float64(int(1) << i), few: i >= few, ended: 1, crowded: true})
			if i == max(few, 1) && (tuner.rising || width > 8<<max(few-2, 0)) {
				t.Errorf("few bytes from window %d on: %d streams in window %d, rising %t", few, width, i, tuner.rising)
			}
		}
	}
}

// What says nothing about the streams moves nothing.
func TestTunerKeeps(t *testing.T) {
	for name, w := range map[string]window{"an outage": {crowded: true}, "idleness": {}, "the end of a load": {rate: 7}} {
		tuner := newTuner(8, 2, 64)
		for range 100 {
			if got := tuner.next(w); got != 8 {
				t.Errorf("%s: %d", name, got)
			}
		}
	}
	tuner := newTuner(8, 2, 64) // an outage in the middle of a trial
	tuner.next(window{rate: 1, crowded: true})
	if got := tuner.next(window{rate: 1, crowded: true}); got != 16 {
		t.Errorf("no trial: %d", got)
	}
	if got := tuner.next(window{crowded: true}); got != 8 {
		t.Errorf("after an outage: %d", got)
	}
	for range 10 {
		tuner.next(window{rate: 1, refused: true})
	}
	if tuner.width != 2 {
		t.Errorf("a bucket that says it is too much: %d", tuner.width)
	}
}

func TestPace(t *testing.T) {
	p := new(pace)
	const s = 1e9 // ns
	if p.behind(0, s) || p.watch() != longest {
		t.Error("judged without a measure")
	}
	if _, sure := p.late(telling); sure {
		t.Error("a large chunk is late without a measure")
	}
	if d, sure := p.late(1); !sure || d != lateFirst {
		t.Error(d, sure)
	}
	for range known {
		p.add(100<<20, s)
	}
	if p.watch() != shortest || p.behind(100<<20/lag, s) || !p.behind(100<<20/lag-1, s) {
		t.Error("the lag is not the limit")
	}
	if d, sure := p.late(100 << 20); !sure || d != lateBy*s {
		t.Error(d, sure)
	}
	if d, _ := p.late(1); d != lateSoon {
		t.Error(d)
	}
	late := 0
	for range 20 {
		if p.behind(1<<20, s) {
			late++
		}
	}
	if late == 0 || late > len(p.recent)/2 {
		t.Errorf("%d were behind when all became slow", late)
	}
}
