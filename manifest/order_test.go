package manifest_test

import (
	"cmp"
	"slices"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

func TestNaturalOrder(t *testing.T) {
	want := []string{"", "A", "a", "a-1", "a1", "a01b", "a1c", "a2", "a02x", "a010", "a10", "a10-1", "a10-2", "a10b",
		"a99999999999999999999", "a100000000000000000000", "b", "model-2-of-10", "model-10-of-10"}
	for i, a := range want {
		for j, b := range want {
			if got := manifest.NaturalOrder(a, b); got != cmp.Compare(i, j) {
				t.Errorf("%q, %q: %d, want %d", a, b, got, cmp.Compare(i, j))
			}
		}
	}
	got := []string{"model-00010-of-00012", "model-00002-of-00012", "model-1", "model-10", "model-2", "model-02"}
	slices.SortFunc(got, manifest.NaturalOrder)
	if !slices.Equal(got, []string{"model-1", "model-02", "model-2", "model-00002-of-00012", "model-10", "model-00010-of-00012"}) {
		t.Errorf("%q", got)
	}
}
