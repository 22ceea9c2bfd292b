package replay

import (
	"slices"
	"testing"

	"github.com/headstart-serving/headstart/stager/safetensors"
)

func TestExtents(t *testing.T) {
	tensors := []safetensors.Tensor{{Offset: 10, Size: step + 5}, {Offset: step + 15, Size: 0}, {Offset: step + 15, Size: 7}}
	for order, want := range map[string][]extent{
		Natural: {{10, step + 5}, {step + 15, 0}, {step + 15, 7}},
		Reverse: {{step + 15, 7}, {15, step}, {10, 5}},
		Halves:  {{10, step + 5}, {step + 15, 0}, {step + 15, 7}},
		// of three the second and the third
		Pipeline: {{step + 15, 0}, {step + 15, 7}},
	} {
		if got := slices.Collect(extents(order, tensors)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", order, got, want)
		}
	}
	// Whatever the order, each byte once; and who stops is let go.
	for n := range 6 {
		var all []safetensors.Tensor
		size := int64(0)
		for i := range n {
			all = append(all, safetensors.Tensor{Offset: size, Size: int64(i) * 3 * step / 2})
			size += int64(i) * 3 * step / 2
		}
		for _, order := range []string{Natural, Reverse, Halves} {
			got := slices.SortedFunc(extents(order, all), func(a, b extent) int { return int(a.off+a.n) - int(b.off+b.n) })
			at := int64(0)
			for _, e := range got {
				if e.n > 0 && e.off != at {
					t.Fatalf("%s: %v of %d tensors", order, got, n)
				}
				at = e.off + e.n
			}
			if at != size {
				t.Errorf("%s: %d bytes of %d", order, at, size)
			}
			for range extents(order, all) {
				break
			}
		}
	}
}

// TestOrdersReadEverything: the same bytes in every order, with the same sums.
func TestOrdersReadEverything(t *testing.T) {
	dir, want := model(t)
	for _, order := range Orders {
		first := ""
		r := newReader(Config{Dir: dir, Want: want, Order: order})
		r.copied = func(path string, _ int64) {
			if first == "" {
				first = path
			}
		}
		err := r.run(t.Context())
		r.close()
		if err != nil || !r.result.Verified || (r.result.Weights == weightBytes) == (order == Pipeline) {
			t.Errorf("%s: %+v, %v", order, r.result, err)
		}
		if (first == "model-10-of-10.safetensors") != (order == Reverse) {
			t.Errorf("%s begins with %s", order, first)
		}
	}
}
