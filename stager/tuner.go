package stager

// tuner finds how many ranged reads in flight are worth it, by trying: it doubles them while that brings
// clearly more bytes, as it does where each connection is slow for itself (a long round trip, a cap on
// every stream); it halves them while that costs nothing, and in between it leaves them alone for longer
// and longer. Where something else is the limit (the processor, the link, the bucket) more of them bring
// nothing, and it stays where it is. It is pure: it sees windows of equal length and no clock.
type tuner struct {
	least, most int
	width       int // reads in flight

	settling bool    // the window is that of a change: it says nothing
	trying   int     // +1 or -1 while a change is on trial, else 0
	back     int     // the width to go back to
	base     float64 // the rate there
	rest     int     // windows until the next trial
	pause    int     // how long the rest after the next failure will be
	down     bool    // the next trial halves
}

const (
	gain     = 1.2 // what twice the reads must bring, as a factor
	noLoss   = 0.97
	minPause = 4   // windows
	maxPause = 128 // windows
)

func newTuner(width, least, most int) *tuner {
	return &tuner{least: least, most: max(most, width), width: width, pause: minPause}
}

// next says how wide the next window is to be. rate is that of the last one, in any unit; crowded that
// reads waited for others to end for much of it: where they did not, more of them at once cannot help.
func (t *tuner) next(rate float64, crowded bool) int {
	if t.settling {
		t.settling = false
		return t.width
	}
	if t.trying != 0 {
		t.judge(rate)
		return t.width
	}
	if t.rest > 0 {
		t.rest--
		return t.width
	}
	more := crowded && t.width < t.most
	switch {
	case t.width > t.least && (t.down || !more):
		t.try(-1, max(t.width/2, t.least), rate)
	case more:
		t.try(+1, min(2*t.width, t.most), rate)
	}
	t.down = false
	return t.width
}

func (t *tuner) try(direction, width int, rate float64) {
	t.trying, t.back, t.base = direction, t.width, rate
	t.width, t.settling = width, true
}

// judge ends a trial.
func (t *tuner) judge(rate float64) {
	wanted := gain
	if t.trying < 0 {
		wanted = noLoss
	}
	good := rate >= t.base*wanted
	t.down = t.trying < 0 == good // after what went well the same again, else the other way
	t.trying = 0
	if good {
		t.pause = minPause
		return
	}
	t.width, t.settling = t.back, true
	t.rest, t.pause = t.pause, min(2*t.pause, maxPause)
}

// minRange is how many bytes a part of a chunk has that is read for itself: fewer, and the round trip
// costs more than the connection brings.
const minRange = 2 << 20

// rangeSize divides a chunk of size bytes into ranges that are read at once. There are several where there
// are too few buffers to have width reads in flight, half of the buffers being on their way up; and for the
// first chunks, asked being how many bytes were asked for before: reads that begin together, a chunk each,
// end together, and nothing can go up until they do.
func rangeSize(size int64, width int, buffers, asked int64) int64 {
	fetching := max(1, buffers/2)
	n := int64(1)
	for (n*fetching < int64(width) || size/n > asked/4) && size/(2*n) >= minRange {
		n *= 2
	}
	return (size + n - 1) / n
}
