package fetch

import (
	"testing"
	"time"
)

func TestRecent(t *testing.T) {
	began := time.Unix(1000, 500e6)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * 1e9)) }
	var p recent
	if r := p.rate(began, began); r != 0 {
		t.Errorf("%v before anything", r)
	}
	p.add(at(0.5), 100)
	if r := p.rate(at(1), began); r != 100 {
		t.Errorf("%v B/s, want 100", r)
	}
	for s := 1; s < 20; s++ { // 10 a second, and the 100 are forgotten
		p.add(at(float64(s)), 10)
	}
	if r := p.rate(at(19.4), began); r < 8 || r > 12 {
		t.Errorf("%v B/s, want about 10", r)
	}
	if r := p.rate(at(60), began); r != 0 {
		t.Errorf("%v B/s after a long pause", r)
	}
	if r := p.rate(at(-60), began); r != 0 {
		t.Errorf("%v B/s where the clock was set back", r)
	}
}
