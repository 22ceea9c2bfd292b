package score

import "testing"

func TestSpread(t *testing.T) {
	for _, x := range []struct {
		all  []float64
		want Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{4, 1}, Spread{2.5, 1, 4}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{9, 1, 2, 4}, Spread{3, 1, 9}},
	} {
		if got := Of(x.all); got != x.want {
			t.Errorf("%v: %+v, want %+v", x.all, got, x.want)
		}
	}
}
