package stager

import "bytes"

// piece is a part of a file in a plan: it has to be fetched, or an earlier run left it.
type piece struct {
	Part
	have *note // of a part that is there
}

// plan divides a file into parts of partSize bytes and takes over those that are there. A part counts
// only where its note is sound and its hashes begin where those of the part before it ended; behind
// a gap that is known when the gap is filled. It is pure.
func plan(f RemoteFile, there []Part, chunkSize, partSize int64) []piece {
	left := make(map[int64]Part, len(there))
	for _, p := range there {
		left[p.Offset] = p
	}
	state := newSums(f).state() // nil behind a gap
	var pieces []piece
	for off := int64(0); off < f.Size; off += partSize {
		p := piece{Part: Part{Offset: off, Size: min(partSize, f.Size-off)}}
		if old, ok := left[off]; ok && old.Size == p.Size {
			n, err := parseNote(old, chunkSize)
			if err == nil && (state == nil || bytes.Equal(state, n.Before)) && newSums(f).restore(n.After) == nil {
				p.Part, p.have = old, &n
			}
		}
		state = nil
		if p.have != nil {
			state = p.have.After
		}
		pieces = append(pieces, p)
	}
	return pieces
}
