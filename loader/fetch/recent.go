package fetch

import "time"

// slots is how many seconds a pace looks back, the one that runs included.
const slots = 5

// recent is how many bytes came in each of the last seconds. Its zero value is ready.
type recent struct {
	second [slots]int64 // which one, since 1970
	bytes  [slots]int64
}

func (p *recent) add(now time.Time, n int64) {
	s := now.Unix()
	i := s % slots
	if p.second[i] != s {
		p.second[i], p.bytes[i] = s, 0
	}
	p.bytes[i] += n
}

// rate returns bytes per second of late, of something that began at began.
func (p *recent) rate(now, began time.Time) float64 {
	oldest := now.Unix() - slots + 1
	var n int64
	for i, s := range p.second {
		if s >= oldest && s <= now.Unix() {
			n += p.bytes[i]
		}
	}
	from := time.Unix(oldest, 0)
	if began.After(from) {
		from = began
	}
	d := now.Sub(from).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(n) / d
}
