package fetch

// Follow makes what nobody demands come in a learnt order, from now on: chunks by number, file after file
// in the manifest's order, each at most once, as package order has them. Small files and the heads
// of the others still come first, and after the learnt ones come the rest in their usual order.
func (l *Load) Follow(learnt []int) {
	l.engine.mu.Lock()
	defer l.engine.mu.Unlock()
	refs := make([]ref, len(learnt))
	for n, i := range learnt {
		refs[n] = l.locate(i)
	}
	l.order = follow(l.order, l.heads, refs)
	l.next = 0 // what has been taken is passed over
	l.progress.Learnt = len(learnt)
}

// follow returns order with the chunks behind the heads rearranged: those that are learnt first, in
// that order. It is pure.
func follow(order []ref, heads int, learnt []ref) []ref {
	left := make(map[ref]bool, len(order)-heads)
	for _, r := range order[heads:] {
		left[r] = true
	}
	planned := make([]ref, 0, len(order))
	planned = append(planned, order[:heads]...)
	for _, some := range [][]ref{learnt, order[heads:]} {
		for _, r := range some {
			if left[r] {
				left[r] = false
				planned = append(planned, r)
			}
		}
	}
	return planned
}
