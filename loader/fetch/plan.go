package fetch

import (
	"cmp"
	"slices"

	"github.com/headstart-serving/headstart/manifest"
)

// smallChunks is the number of chunks up to which a file is fetched whole before any tensor: config,
// index and tokenizer are, weights are not.
const smallChunks = 4

// ref names a chunk of a manifest.
type ref struct{ file, chunk int }

// plan returns all chunks in the order in which they are fetched, and how many of them come before
// the rest of the large files: the small files, smallest first, then the first chunk of each other.
func plan(m *manifest.Manifest) (order []ref, heads int) {
	files := make([]int, len(m.Files))
	n := 0
	for i := range files {
		files[i] = i
		n += len(m.Files[i].Chunks)
	}
	slices.SortStableFunc(files, func(a, b int) int {
		fa, fb := &m.Files[a], &m.Files[b]
		switch smallA, smallB := len(fa.Chunks) <= smallChunks, len(fb.Chunks) <= smallChunks; {
		case smallA && smallB:
			return cmp.Compare(fa.Size, fb.Size)
		case smallA:
			return -1
		case smallB:
			return 1
		}
		return manifest.NaturalOrder(fa.Path, fb.Path)
	})
	order = make([]ref, 0, n)
	for _, f := range files {
		if len(m.Files[f].Chunks) > smallChunks {
			order = append(order, ref{f, 0})
			continue
		}
		for c := range m.Files[f].Chunks {
			order = append(order, ref{f, c})
		}
	}
	heads = len(order)
	for _, f := range files {
		if len(m.Files[f].Chunks) <= smallChunks {
			continue
		}
		for c := 1; c < len(m.Files[f].Chunks); c++ {
			order = append(order, ref{f, c})
		}
	}
	return order, heads
}
