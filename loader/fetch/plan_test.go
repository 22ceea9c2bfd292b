package fetch

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	for n := range 100 {
		if d := backoff(n); d < 50*time.Millisecond || d > 10*time.Second {
			t.Errorf("%d: %v", n, d)
		}
	}
}
