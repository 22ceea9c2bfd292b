package file

import (
	"testing"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConform(t *testing.T) {
	stagertest.Conform(t, func(t *testing.T) func() stager.Store {
		dir := t.TempDir()
		return func() stager.Store { return open(t, dir) }
	})
}
