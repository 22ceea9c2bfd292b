package memory

import (
	"context"
	"os"
	"testing"
)

func TestTouch(t *testing.T) {
	dir := t.TempDir()
	r, err := Touch(t.Context(), dir, 9<<20+1)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(r.path); err != nil || st.Size() != 9<<20+1 {
		t.Errorf("%v, %v", st, err)
	}
	if err := r.Release(); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Touch(ended, dir, 1); err == nil {
		t.Error("it goes on after its context has ended")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
