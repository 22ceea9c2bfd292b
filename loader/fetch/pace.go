package fetch

import (
	"slices"
	"sync"
	"time"
)

// pace knows how fast connections have been of late, and tells one that lags far behind the others, and
// a chunk that is late. There is no speed that is too slow by itself: on a slow link all are slow. It
// sees durations and no clock.
type pace struct {
	mu     sync.Mutex
	recent [16]float64 // bytes a second of stretches of any connection, the oldest overwritten first
	n      int         // stretches in all
}

const (
	known    = 4       // stretches without which nobody can be judged
	lag      = 8       // a connection that is so many times slower than the median is behind
	typical  = 8 << 20 // bytes that the median connection moves while another is watched
	telling  = 1 << 20 // bytes from which on a stretch tells a rate and not a round trip
	maxCuts  = 3       // of one chunk: after that it may be the bytes that are slow to get, not the connection
	shortest = time.Second
	longest  = 5 * time.Second // a connection is watched for no less and no more than these two

	lateBy    = 3                      // a chunk that takes so many times the median's time is late
	lateSoon  = 100 * time.Millisecond // … but none is sooner
	lateFirst = time.Second            // where no rate is known: of a small chunk
)

// add takes a stretch in which a connection moved n bytes.
func (p *pace) add(n int64, d time.Duration) {
	if d <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent[p.n%len(p.recent)] = float64(n) / d.Seconds()
	p.n++
}

// watch returns for how long a connection is to be watched before it is judged: what the others need for
// typical bytes.
func (p *pace) watch() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.median()
	if m*longest.Seconds() <= typical {
		return longest
	}
	return max(shortest, time.Duration(typical/m*float64(time.Second)))
}

// behind reports whether a connection that moved n bytes in d lags behind the others, and takes the stretch
// into account: where all of them have become slow, the first few are behind and the rest are the measure.
func (p *pace) behind(n int64, d time.Duration) bool {
	p.mu.Lock()
	late := float64(n)*lag < p.median()*d.Seconds()
	p.mu.Unlock()
	p.add(n, d)
	return late
}

// late returns how long a chunk of n bytes may take until it is late; false where that cannot be told.
func (p *pace) late(n int64) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.median()
	if m == 0 {
		return lateFirst, n < telling
	}
	return max(lateSoon, time.Duration(lateBy*float64(n)/m*float64(time.Second))), true
}

// median returns that of the recent stretches in bytes a second, 0 where too few are known.
func (p *pace) median() float64 {
	if p.n < known {
		return 0
	}
	sorted := p.recent
	n := min(p.n, len(sorted))
	slices.Sort(sorted[:n])
	return sorted[n/2]
}
