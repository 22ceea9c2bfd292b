package fetch

// tuner finds how many chunks received at once are worth it, by trying: it doubles them while that
// brings clearly more bytes, as it does where each connection is slow for itself (a long round trip, a
// cap on every stream); it halves them while that costs nothing, and in between it leaves them alone for
// longer and longer. Where something else is the limit (the processor, the link, the bucket) more of
// them bring nothing, and it stays where it is. It begins with a rise: on a fast network with a cap on
// every stream, the first seconds are much of a load. It is pure: it sees windows and no clock.
type tuner struct {
	least, most int
	width       int // chunks at once

	rising bool // it has not yet found a width at which twice the streams bring much less than twice the bytes
	looked int  // windows of the rise since it doubled

	settling bool    // the window is that of a change, or of a beginning: it says nothing
	trying   int     // +1 or -1 while a change is on trial, else 0
	back     int     // the width to go back to
	base     float64 // the rate there
	rest     int     // windows until the next trial
	pause    int     // how long the rest after the next failure will be
	down     bool    // the next trial halves
}

const (
	gain     = 1.2  // what twice the streams must bring, as a factor
	rise     = 1.5  // … for the rise to go on
	looks    = 3    // windows of the rise in which they may do so: a connection and a first byte take their time
	noLoss   = 0.97 // what half of them must keep
	loss     = 0.9  // what half of them must keep in the window in which those that are too many end: less, and it is lost
	minPause = 4    // windows
	maxPause = 128  // windows
	proven   = 16   // windows at least, where half the streams were just seen to bring less: trying them costs bytes
)

func newTuner(width, least, most int) *tuner {
	return &tuner{least: least, most: max(most, width), width: width, settling: true, rising: true, pause: minPause}
}

// window is what the tuner sees of one.
type window struct {
	rate    float64 // bytes a second, or in any other unit
	few     bool    // so few bytes that chance has much to say
	ended   int     // chunks that came or failed
	crowded bool    // chunks waited for others to end; else a load came to its end, and the rate is no measure
	refused bool    // the bucket said more often that it is too much than it gave a chunk
}

// next says how wide the next window is to be.
func (t *tuner) next(w window) int {
	switch {
	case w.refused:
		t.trying, t.settling, t.rising = 0, true, false
		t.width = max(t.width/2, t.least)
		t.rest, t.pause = t.pause, min(2*t.pause, maxPause)
	case w.rate == 0 || !w.crowded: // an outage, or little to do: no measure
		t.end()
	case t.settling && (t.trying >= 0 || w.rate >= t.base*loss):
		t.settling = false
	case t.rising && w.few:
		t.rising = false
		t.end()
	case t.rising:
		t.climb(w.rate)
	case t.trying != 0:
		t.judge(w.rate)
	case t.rest > 0:
		t.rest--
	default:
		t.change(w)
	}
	return t.width
}

// climb is a window of the rise.
func (t *tuner) climb(rate float64) {
	t.looked++
	switch {
	case t.width < t.most && (t.trying == 0 || rate >= t.base*rise):
		t.try(+1, min(2*t.width, t.most), rate)
		t.looked, t.settling = 0, false
	case t.looked == looks:
		t.rising = false
		t.judge(rate)
	}
}

// change begins a trial, where one can tell something. Fewer streams show only when those that are too many
// have ended their chunks: where that takes longer than a window, on a slow link, they are not tried.
func (t *tuner) change(w window) {
	more := t.width < t.most
	switch {
	case t.width > t.least && (t.down || !more) && w.ended >= t.width:
		t.try(-1, max(t.width/2, t.least), w.rate)
	case more:
		t.try(+1, min(2*t.width, t.most), w.rate)
	}
	t.down = false
}

func (t *tuner) try(direction, width int, rate float64) {
	t.trying, t.back, t.base = direction, t.width, rate
	t.width, t.settling = width, true
}

// end gives up what is on trial.
func (t *tuner) end() {
	if t.trying != 0 {
		t.trying, t.width = 0, t.back
	}
	t.settling = true
}

// judge ends a trial.
func (t *tuner) judge(rate float64) {
	wanted := gain
	if t.trying < 0 {
		wanted = noLoss
	}
	good := rate >= t.base*wanted
	t.down = t.trying < 0 == good // after what went well the same again, else the other way
	if t.trying < 0 && !good {
		t.pause = max(t.pause, proven)
	}
	t.trying = 0
	if good {
		t.pause = minPause
		if t.width == t.most {
			t.rest = proven
		}
		return
	}
	t.width, t.settling = t.back, true
	t.rest, t.pause = t.pause, min(2*t.pause, maxPause)
}
