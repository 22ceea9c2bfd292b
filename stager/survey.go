package stager

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// Manifested is a Source whose models are staged already, in another bucket. What comes from there keeps its
// manifest, and so its pin: the same files in the same chunks, or an error.
type Manifested interface {
	Manifest(ctx context.Context, m manifest.Model) (*manifest.Manifest, error)
}

// survey is what a run knows of a model before it writes anything.
type survey struct {
	snapshot Snapshot
	left     []Object          // what earlier runs kept for a restart
	before   Result            // the manifest, where it is there
	there    map[string]Object // the model's objects by key
	lacking  string            // the first object that the manifest names and that is missing, "" for none
}

// staged reports whether nothing of the model is missing.
func (v survey) staged() bool { return v.before.Manifest != nil && v.lacking == "" }

// survey asks what the revision means and what of it the bucket has. It writes nothing.
func (s *Stager) survey(ctx context.Context, ref manifest.Reference) (v survey, err error) {
	if ref.Pin != (manifest.Digest{}) {
		return v, Fail(manifest.ErrInvalid, "a pin names a manifest that is staged already: give a branch, a tag or a commit instead")
	}
	if v.snapshot, err = s.Source.Resolve(ctx, ref.Repo, ref.Revision); err != nil {
		return v, err
	}
	model := v.snapshot.Model
	if err := model.Validate(); err != nil {
		return v, err
	}
	if err := fitsRef(s.Store, model.Repo, v.snapshot.Ref); err != nil {
		return v, err
	}
	// The listing comes first: it is what tells a bucket that is missing from a model that is.
	if v.left, err = list(ctx, s.Store, partsOf(model)); err != nil {
		return v, err
	}
	if v.before, err = s.staged(ctx, model); err != nil {
		return v, err
	}
	// Listed after the manifest was looked for: whoever wrote it had stored the files before.
	objects, err := list(ctx, s.Store, model.Object(""))
	if err != nil {
		return v, err
	}
	v.there = make(map[string]Object, len(objects))
	for _, o := range objects {
		v.there[o.Key] = o
	}
	if v.before.Manifest != nil {
		v.lacking = lacks(v.before.Manifest, v.there)
	}
	return v, nil
}

// choose decides what is taken, and returns the manifest that the result has to be identical to, nil where
// there is none yet. Without patterns, a model that is staged is what its manifest says.
func (s *Stager) choose(ctx context.Context, v survey) (Choice, *manifest.Manifest, error) {
	model := v.snapshot.Model
	known := v.before.Manifest
	files, err := s.Source.Files(ctx, model)
	if err != nil {
		return Choice{}, nil, err
	}
	if source, ok := s.Source.(Manifested); ok {
		if !s.Select.empty() {
			return Choice{}, nil, Fail(ErrSelection, "a model from another bucket is copied as it is staged there: leave out the patterns, or stage it from where it came from")
		}
		template, err := source.Manifest(ctx, model)
		if err != nil {
			return Choice{}, nil, err
		}
		if known != nil {
			if err := alike(known, template); err != nil {
				return Choice{}, nil, err
			}
		}
		known = template
	}
	if known != nil && s.Select.empty() {
		c := named(known, files)
		return c, known, same(known, c.Files)
	}
	c, err := Choose(files, s.Select)
	if err == nil && known != nil {
		if err = reselected(known, c); err == nil {
			err = same(known, c.Files)
		}
	}
	return c, known, err
}

// named divides files by whether a manifest names them.
func named(m *manifest.Manifest, files []RemoteFile) Choice {
	var c Choice
	for _, f := range files {
		if m.File(f.Path) != nil {
			c.Files = append(c.Files, f)
		} else {
			c.Left = append(c.Left, LeftOut{f, "not in the manifest of the model, which is staged"})
		}
	}
	slices.SortFunc(c.Files, func(a, b RemoteFile) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(c.Left, func(a, b LeftOut) int { return strings.Compare(a.Path, b.Path) })
	return c
}

// reselected reports, with what differs, a model that was staged with other patterns.
func reselected(m *manifest.Manifest, c Choice) error {
	differs := func(what string) error {
		return Fail(fs.ErrExist, "the model is staged at this commit with another selection: %s: leave out the patterns to keep it as it is, or remove its manifest %s and stage again (files that are there are kept, the pin changes)", what, m.Model.Key())
	}
	selected := make(map[string]bool, len(c.Files))
	for _, f := range c.Files {
		selected[f.Path] = true
		if m.File(f.Path) == nil {
			return differs(fmt.Sprintf("%.200q is selected now and not in it", f.Path))
		}
	}
	for i := range m.Files {
		if p := m.Files[i].Path; !selected[p] {
			return differs(fmt.Sprintf("%.200q is in it and not selected now", p))
		}
	}
	return nil
}

// alike reports, with what differs, a model that is staged in two buckets and not as the same manifest.
func alike(here, there *manifest.Manifest) error {
	differs := func(what string) error {
		return Fail(fs.ErrExist, "the model is staged here at this commit as another manifest than where it comes from: %s: keep it, or remove its manifest %s and stage again (files that are there are kept)", what, here.Model.Key())
	}
	for _, m := range [][2]*manifest.Manifest{{here, there}, {there, here}} {
		for i := range m[0].Files {
			f := &m[0].Files[i]
			if g := m[1].File(f.Path); g == nil || g.Size != f.Size || g.SHA256 != f.SHA256 {
				return differs(fmt.Sprintf("%.200q is in one of them only, or has other bytes", f.Path))
			}
		}
	}
	if here.ChunkSize != there.ChunkSize {
		return differs(fmt.Sprintf("chunks of %d bytes and of %d", here.ChunkSize, there.ChunkSize))
	}
	return nil
}

// unlike reports a model that is staged, but not as what is asked for. Without patterns nothing is asked of
// the source.
func (s *Stager) unlike(ctx context.Context, v survey) error {
	if _, ok := s.Source.(Manifested); !ok && s.Select.empty() {
		return nil
	}
	_, _, err := s.choose(ctx, v)
	return err
}

// take decides what is copied, in which chunks, and finds what another commit has of it.
func (s *Stager) take(ctx context.Context, v survey, t *transfer) (Choice, error) {
	c, known, err := s.choose(ctx, v)
	if err != nil {
		return c, err
	}
	if t.known = known; known != nil {
		t.divide(known.ChunkSize)
		if t.ChunkSize > t.Memory {
			return c, Fail(manifest.ErrInvalid, "%s is staged in chunks of %d bytes, for which %d bytes of buffers are too little: give it more memory", t.model, t.ChunkSize, t.Memory)
		}
	}
	if err := fits(s.Store, t.model, c.Files, t.ChunkSize); err != nil {
		return c, err
	}
	return c, t.findUnchanged(ctx, c.Files)
}

// strangers says which of the model's objects no manifest will name: those of a run with other patterns
// that did not end, or somebody's own.
func (t *transfer) strangers(files []RemoteFile) {
	own := make(map[string]bool, len(files))
	for _, f := range files {
		own[t.model.Object(f.Path)] = true
	}
	for _, key := range slices.Sorted(maps.Keys(t.there)) {
		if !own[key] {
			t.Log.Warn("an object that is not selected is there: remove it if nobody needs it", "model", t.model, "object", key)
		}
	}
}
