package fetch

import "time"

// signal lets up to n idle streams look into the queue.
func (e *Engine) signal(n int) {
	for range min(n, cap(e.wake)) {
		select {
		case e.wake <- struct{}{}:
		default:
			return // every stream has its token
		}
	}
}

// demand puts a chunk before everything else, once. The caller holds e.mu.
func (e *Engine) demand(l *Load, i int) {
	if l.over || l.status[i] != queued {
		return
	}
	l.status[i] = demanded
	e.demands = append(e.demands, demand{l, i, time.Now()})
	e.signal(1)
}

// take returns the next job and marks it taken.
func (e *Engine) take() (demand, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d, ok := e.pick()
	if !ok {
		return d, false
	}
	if d.chunk != seal {
		d.load.status[d.chunk] = taken
		e.metrics.taken(d, time.Now())
	}
	d.load.inFlight++
	d.load.progress.InFlight++
	return d, true
}

func (e *Engine) pick() (demand, bool) {
	for len(e.demands) > 0 {
		d := e.demands[0]
		e.demands = e.demands[1:]
		if !d.load.over {
			return d, true
		}
	}
	for _, l := range e.loads {
		if i, ok := l.planned(l.heads); ok {
			return demand{load: l, chunk: i}, true
		}
	}
	for _, l := range e.loads {
		if i, ok := l.planned(len(l.order)); ok {
			return demand{load: l, chunk: i}, true
		}
	}
	return demand{}, false
}

// planned returns the next chunk of order[:end] that nobody has taken.
func (l *Load) planned(end int) (int, bool) {
	for l.next < end && !l.over {
		r := l.order[l.next]
		i := l.first[r.file] + r.chunk
		// A chunk that failed is not left behind: it comes back as a demand.
		l.next++
		if l.status[i] == queued && l.troubles[i] == 0 {
			return i, true
		}
	}
	return 0, false
}
