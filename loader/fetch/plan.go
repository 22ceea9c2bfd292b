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
		return natural(fa.Path, fb.Path)
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

// natural compares names as a person does: a run of digits by its value, so model-2 comes before
// model-10. Names that differ by leading zeros only are compared by their bytes.
func natural(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		dx, dy := digits(x), digits(y)
		if dx == 0 || dy == 0 {
			if x[0] != y[0] {
				return cmp.Compare(x[0], y[0])
			}
			x, y = x[1:], y[1:]
			continue
		}
		nx, ny := trimZeros(x[:dx]), trimZeros(y[:dy])
		if c := cmp.Or(cmp.Compare(len(nx), len(ny)), cmp.Compare(nx, ny)); c != 0 {
			return c
		}
		x, y = x[dx:], y[dy:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

func digits(s string) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

func trimZeros(s string) string {
	for len(s) > 1 && s[0] == '0' {
		s = s[1:]
	}
	return s
}
