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

// take returns the next job of a stream, whose last one is over, and marks it taken.
func (e *Engine) take(s *stream) (demand, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rest(s)
	if e.busy >= e.width {
		return demand{}, false
	}
	d, ok := e.peek()
	if !ok {
		return d, false
	}
	size := int64(0)
	if d.chunk != seal {
		size = d.load.chunk(d.load.locate(d.chunk)).Size
	}
	if e.bytes > 0 && e.bytes+size > e.cfg.InFlight {
		return demand{}, false // the stream whose chunk ends looks again
	}
	if len(e.demands) > 0 {
		e.demands = e.demands[1:]
	}
	s.busy, s.size, s.began = true, size, time.Now()
	e.busy++
	e.bytes += size
	if d.chunk != seal {
		e.taken++
		d.load.status[d.chunk] = taken
		e.metrics.taken(d, time.Now())
		d.load.flights[d.chunk] = s
		e.watchLate(d.load, d.chunk)
	}
	d.load.inFlight++
	d.load.progress.InFlight++
	// One that ends may leave room for two.
	if _, more := e.peek(); more && e.busy < e.width {
		e.signal(1)
	}
	return d, true
}

// rest takes note that a stream has no job. The caller holds e.mu.
func (e *Engine) rest(s *stream) {
	if s.busy {
		s.busy = false
		e.busy--
		e.bytes -= s.size
	}
}

// peek returns the next job: the first demand, if there is one, else the first of the plans.
func (e *Engine) peek() (demand, bool) {
	for len(e.demands) > 0 {
		if d := e.demands[0]; !d.load.over {
			return d, true
		}
		e.demands = e.demands[1:]
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
		if l.status[i] == queued && l.troubles[i] == 0 {
			return i, true
		}
		l.next++
	}
	return 0, false
}
