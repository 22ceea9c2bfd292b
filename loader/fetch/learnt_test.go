package fetch

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

// shards is a model of a small file and shards of so many chunks.
func shards(chunks ...int) *manifest.Manifest {
	m := &manifest.Manifest{Files: []manifest.File{{Path: "config.json", Size: 1, Chunks: make([]uint32, 1)}}}
	for i, n := range chunks {
		m.Files = append(m.Files, manifest.File{Path: "model-" + string(rune('1'+i)), Size: int64(n), Chunks: make([]uint32, n)})
	}
	return m
}

func TestFollow(t *testing.T) {
	order, heads := plan(shards(6, 5))
	if heads != 3 || len(order) != 12 {
		t.Fatalf("%d heads of %d chunks", heads, len(order))
	}
	reverse := slices.Clone(order)
	slices.Reverse(reverse)
	for name, c := range map[string]struct{ learnt, want []ref }{
		"nothing": {nil, order[3:]},
		"reverse": {reverse, []ref{{2, 4}, {2, 3}, {2, 2}, {2, 1}, {1, 5}, {1, 4}, {1, 3}, {1, 2}, {1, 1}}},
		"a few":   {[]ref{{2, 3}, {0, 0}, {1, 4}, {2, 3}, {1, 0}}, []ref{{2, 3}, {1, 4}, {1, 1}, {1, 2}, {1, 3}, {1, 5}, {2, 1}, {2, 2}, {2, 4}}},
	} {
		got := follow(order, heads, c.learnt)
		if !slices.Equal(got[:heads], order[:heads]) || !slices.Equal(got[heads:], c.want) {
			t.Errorf("%s: %v, want %v behind the heads", name, got, c.want)
		}
	}
}

// Whatever was learnt, every chunk comes once, and the heads come first.
func TestFollowIsAPermutation(t *testing.T) {
	for range 500 {
		order, heads := plan(shards(rand.IntN(9), rand.IntN(9), rand.IntN(9)))
		learnt := make([]ref, rand.IntN(30))
		for i := range learnt {
			learnt[i] = order[rand.IntN(len(order))]
		}
		got := follow(order, heads, learnt)
		if !slices.Equal(got[:heads], order[:heads]) {
			t.Fatalf("the heads are %v, want %v", got[:heads], order[:heads])
		}
		seen := map[ref]int{}
		for _, r := range got {
			seen[r]++
		}
		for _, r := range order {
			if seen[r] != 1 || len(got) != len(order) {
				t.Fatalf("%v comes %d times in %v", r, seen[r], got)
			}
		}
	}
}
