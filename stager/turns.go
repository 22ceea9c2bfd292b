package stager

import "iter"

// turns iterates over the pieces of the jobs in the order in which they are put on their way: files that
// go up in one piece first, then as many others side by side as beside says, a piece of each in turn. A
// file is hashed in the order of its bytes, by one core at a time, so it takes as many files as there are
// cores to keep all of them busy. It yields a job and the index of a piece, those of a job in their
// order; a job without pieces is yielded once.
func turns(jobs []*job, beside int) iter.Seq2[*job, int] {
	return func(yield func(*job, int) bool) {
		type place struct {
			*job
			next int
		}
		var active []place
		for at := 0; at < len(jobs) || len(active) > 0; {
			for at < len(jobs) && (len(active) < beside || jobs[at].upload == nil) {
				if jobs[at].upload == nil {
					if !yield(jobs[at], 0) {
						return
					}
				} else {
					active = append(active, place{job: jobs[at]})
				}
				at++
			}
			left := active[:0]
			for _, p := range active {
				if !yield(p.job, p.next) {
					return
				}
				if p.next++; p.next < len(p.pieces) {
					left = append(left, p)
				}
			}
			active = left
		}
	}
}
