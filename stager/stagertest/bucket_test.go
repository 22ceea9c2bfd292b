package stagertest_test

import (
	"testing"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestConform(t *testing.T) {
	stagertest.Conform(t, func(t *testing.T) func() stager.Store {
		b := stagertest.NewBucket(t)
		return func() stager.Store { return b.Store(nil) }
	})
}
