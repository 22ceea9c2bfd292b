package sweep

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// noteOf is the key of the note that a removal leaves while it is at work. When the manifest is gone, it is
// what says which objects were the commit's and what people called it by.
func noteOf(m manifest.Model) string { return inventory.PartsOf(m) + "removal" }

type note struct {
	Pin   string   `json:"pin"`
	Refs  []string `json:"refs"`
	Paths []string `json:"paths"`
}

// maxNote is its size in bytes at most: its paths stand in a manifest, too.
const maxNote = 2 * manifest.MaxSize

func noteFor(i Item) ([]byte, error) {
	n := note{Pin: i.pin.String(), Refs: []string{}, Paths: []string{}}
	for _, r := range i.Refs {
		n.Refs = append(n.Refs, r.Name)
	}
	for _, o := range i.Objects {
		n.Paths = append(n.Paths, o.Key[len(i.Model.Object("")):])
	}
	return json.Marshal(n)
}

// notes are those of removals that did not end.
type notes map[manifest.Model]*note

// names returns the keys of the objects that were to go with m, nil where there is no note.
func (n notes) names(m manifest.Model) map[string]bool {
	if n[m] == nil {
		return nil
	}
	names := make(map[string]bool, len(n[m].Paths))
	for _, p := range n[m].Paths {
		names[m.Object(p)] = true
	}
	return names
}

func readNotes(ctx context.Context, b Bucket, inv *inventory.Inventory) (notes, error) {
	all := make(notes)
	for _, c := range inv.Commits {
		n, err := readNote(ctx, b, c)
		if err != nil {
			return nil, err
		}
		// One of a removal that was called off, and whose commit was staged anew with other files, says nothing.
		if n != nil && (!c.Staged() || n.Pin == c.Sum.String()) {
			all[c.Model] = n
		}
	}
	return all, nil
}

// readNote returns the note of a removal of c that did not end, nil for none. The bucket is hostile: a note
// that is damaged is none.
func readNote(ctx context.Context, b Bucket, c *inventory.Commit) (*note, error) {
	key := noteOf(c.Model)
	if !slices.ContainsFunc(c.Parts, func(o stager.Object) bool { return o.Key == key }) {
		return nil, nil
	}
	data, _, err := b.Get(ctx, key, maxNote)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, manifest.ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n note
	if json.Unmarshal(data, &n) != nil {
		return nil, nil
	}
	return &n, nil
}

// writeNote writes a note over one that another removal has left.
func writeNote(ctx context.Context, b Bucket, m manifest.Model, data []byte) error {
	err := b.Put(ctx, noteOf(m), 0, data)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	_, version, err := b.Get(ctx, noteOf(m), maxNote)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.Put(ctx, noteOf(m), version, data)
}
