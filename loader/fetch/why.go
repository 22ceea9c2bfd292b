package fetch

import "fmt"

// Why says in a few words, for a log and a person, why the n bytes of Files[file] from off are not all
// there yet: what becomes of the first chunk that is missing.
func (l *Load) Why(file int, off, n int64) string {
	e := l.engine
	end := min(off+n, l.m.Files[file].Size)
	chunk, last := int(off/l.m.ChunkSize), int((end-1)/l.m.ChunkSize)
	for off < end && chunk <= last && l.entry.Have(file, chunk) {
		chunk++
	}
	if off >= end || chunk > last {
		return "its bytes are there"
	}
	i := l.first[file] + chunk
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case l.over:
		return fmt.Sprintf("the load has ended: %v", l.err)
	case l.troubles[i] > 0:
		return fmt.Sprintf("%d attempts at its chunk have failed, the next one follows: %s", l.troubles[i], l.progress.Reason)
	case l.progress.Reason != "":
		return "no chunk arrives: " + l.progress.Reason
	case l.status[i] == taken:
		return "its chunk is being received"
	case l.status[i] == demanded:
		return fmt.Sprintf("its chunk is asked for by readers, as %d others are that are not being received yet", len(e.demands)-1)
	}
	return fmt.Sprintf("its chunk's turn has not come: %d of the model's are missing", l.missing)
}
