// Package order is the format of a learnt order: in which sequence the chunks of one model were first
// demanded by a reader that had to take them as they came.
//
// It is a hint about speed and about nothing else: a load without one, or with a bad one, brings the same
// bytes. So it is small, it names the manifest that it is of by its sum, and Parse takes exactly what
// Marshal makes: no chunk twice, none that the manifest does not have. Chunks that it does not name were
// not seen. Chunks are numbered from 0, file after file in the manifest's order.
package order

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/headstart-serving/headstart/manifest"
)

// Version is the version of the format that this package writes and reads.
const Version = 1

// MaxSize is the largest order in bytes: the worst one of a model of 1.5 TB in chunks of 16 MiB.
const MaxSize = 1 << 20

// Chunks returns how many chunks a model has.
func Chunks(m *manifest.Manifest) (n int) {
	for i := range m.Files {
		n += len(m.Files[i].Chunks)
	}
	return n
}

// wire is the document; a run is the number of a chunk and how many follow it, itself counted.
type wire struct {
	Version  int    `json:"version"`
	Manifest string `json:"manifest"` // its sum
	Runs     []run  `json:"runs"`
}

type run [2]int

// Marshal returns the one encoding of an order of the manifest with that sum.
func Marshal(chunks []int, m *manifest.Manifest, sum manifest.Digest) ([]byte, error) {
	w := wire{Version: Version, Manifest: sum.String(), Runs: []run{}}
	for _, c := range chunks {
		if last := len(w.Runs) - 1; last >= 0 && w.Runs[last][0]+w.Runs[last][1] == c {
			w.Runs[last][1]++
			continue
		}
		w.Runs = append(w.Runs, run{c, 1})
	}
	if _, err := w.chunks(m); err != nil {
		return nil, fmt.Errorf("the order of %s: %w", m.Model, err)
	}
	b := w.encode()
	if len(b) > MaxSize {
		return nil, fmt.Errorf("the order of %s has %d bytes, more than %d that readers take", m.Model, len(b), MaxSize)
	}
	return b, nil
}

func (w *wire) encode() []byte {
	b, err := json.Marshal(w)
	if err != nil {
		panic("order: " + err.Error())
	}
	return append(b, '\n')
}

// chunks spells the runs out, and fails where one names what is not there or was there before.
func (w *wire) chunks(m *manifest.Manifest) ([]int, error) {
	n := Chunks(m)
	seen := make([]bool, n)
	var all []int
	for i, r := range w.Runs {
		first, count := r[0], r[1]
		if first < 0 || first >= n || count < 1 || count > n-first {
			return nil, fmt.Errorf("run %d, %d chunks from %d: the model has %d", i, count, first, n)
		}
		for c := first; c < first+count; c++ {
			if seen[c] {
				return nil, fmt.Errorf("run %d: chunk %d comes twice", i, c)
			}
			seen[c] = true
			all = append(all, c)
		}
	}
	return all, nil
}

// Parse reads an order of the manifest with that sum. Data is hostile. The error wraps
// [manifest.ErrInvalid].
func Parse(data []byte, m *manifest.Manifest, sum manifest.Digest) ([]int, error) {
	chunks, err := parse(data, m, sum)
	if err != nil {
		return nil, fmt.Errorf("%w order of %s: %w", manifest.ErrInvalid, m.Model, err)
	}
	return chunks, nil
}

func parse(data []byte, m *manifest.Manifest, sum manifest.Digest) ([]int, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), MaxSize)
	}
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, err
	}
	if w.Version != Version {
		return nil, fmt.Errorf("version %d, this headstart reads version %d", w.Version, Version)
	}
	if w.Manifest != sum.String() {
		return nil, errors.New("it is of another manifest: the model was staged again since")
	}
	chunks, err := w.chunks(m)
	if err != nil {
		return nil, err
	}
	if canonical, err := Marshal(chunks, m, sum); err != nil || !bytes.Equal(canonical, data) {
		return nil, errors.New("not the encoding that headstart writes")
	}
	return chunks, nil
}
