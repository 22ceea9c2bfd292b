package replay

import (
	"iter"
	"slices"

	"github.com/headstart-serving/headstart/stager/safetensors"
)

// The orders in which weights can be read.
const (
	// Natural is vLLM's: files in natural order, tensors in the order of their names, each from its beginning.
	Natural = "natural"
	// Reverse is the opposite in everything: what a loader meets that expects the usual order.
	Reverse = "reverse"
	// Halves is two ranks of a tensor parallel server that split each file between them: the first half of
	// its tensors and the second are read side by side.
	Halves = "halves"
	// Pipeline is the last of two ranks of a pipeline: it wants the second half of each file's tensors, and
	// never the rest.
	Pipeline = "pipeline"
)

// Orders lists them.
var Orders = []string{Natural, Reverse, Halves, Pipeline}

// inOrder puts shards, which are in natural order, in the order in which they are read.
func inOrder(order string, shards []string) {
	if order == Reverse {
		slices.Reverse(shards)
	}
}

// extent is a stretch of a file.
type extent struct{ off, n int64 }

// extents are what is copied of a shard's tensors, in order.
func extents(order string, tensors []safetensors.Tensor) iter.Seq[extent] {
	return func(yield func(extent) bool) {
		switch order {
		case Reverse:
			for _, t := range slices.Backward(tensors) {
				for end := t.Size; end > 0; end -= min(step, end) {
					if !yield(extent{t.Offset + max(0, end-step), min(step, end)}) {
						return
					}
				}
			}
		case Halves:
			a, b := tensors[:len(tensors)/2], tensors[len(tensors)/2:]
			for i := range b {
				if i < len(a) && !yield(extent{a[i].Offset, a[i].Size}) || !yield(extent{b[i].Offset, b[i].Size}) {
					return
				}
			}
		case Pipeline:
			for _, t := range tensors[len(tensors)/2:] {
				if !yield(extent{t.Offset, t.Size}) {
					return
				}
			}
		default:
			for _, t := range tensors {
				if !yield(extent{t.Offset, t.Size}) {
					return
				}
			}
		}
	}
}
