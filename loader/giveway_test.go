package loader

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestCopyRests: a copy waits for as long as its last chunk took, and not when it is to end.
func TestCopyRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Loader{}
		ctx, cancel := context.WithCancelCause(t.Context())
		for _, took := range []time.Duration{0, 3 * time.Second} {
			began := time.Now()
			if err := l.giveWay(ctx, took); err != nil || time.Since(began) != took {
				t.Errorf("%v: %v after %v", took, err, time.Since(began))
			}
		}
		why := errors.New("why")
		began := time.Now()
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := l.giveWay(ctx, time.Hour); !errors.Is(err, why) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
