package hf

import (
	"slices"
	"sync"
	"time"
)

// pace knows how fast connections have been of late, and tells one that lags far behind the others. There
// is no speed that is too slow by itself: on a slow link all are slow. A connection that stands is the
// same, at no bytes a second. It sees durations and no clock.
type pace struct {
	shortest time.Duration // no connection is judged by less than that
	longest  time.Duration // … nor, once the others are known, later than that

	mu     sync.Mutex
	recent [16]float64 // bytes a second of stretches of any connection, the oldest overwritten first
	n      int         // stretches in all
}

const (
	known   = 4       // stretches without which nobody can be judged
	lag     = 8       // a connection that is so many times slower than the median is behind
	typical = 8 << 20 // bytes that the median connection moves while another is watched
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
	if m*p.longest.Seconds() <= typical {
		return p.longest
	}
	return max(p.shortest, time.Duration(typical/m*float64(time.Second)))
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

// median returns that of the recent stretches in bytes a second, 0 where too few are known.
func (p *pace) median() float64 {
	if p.n < known {
		return 0
	}
	sorted := slices.Clone(p.recent[:min(p.n, len(p.recent))])
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
