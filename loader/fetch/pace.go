package fetch

import "time"

// paceSlots is how many seconds a pace looks back, the one that runs included.
const paceSlots = 5

// pace is how many bytes came in each of the last seconds. Its zero value is ready.
type pace struct {
	second [paceSlots]int64 // which one, since 1970
	bytes  [paceSlots]int64
}

func (p *pace) add(now time.Time, n int64) {
	s := now.Unix()
	i := s % paceSlots
	if p.second[i] != s {
		p.second[i], p.bytes[i] = s, 0
	}
	p.bytes[i] += n
}

// rate returns bytes per second of late, of something that began at began.
func (p *pace) rate(now, began time.Time) float64 {
	oldest := now.Unix() - paceSlots + 1
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
