package stager

import (
	"context"
	"fmt"

	"github.com/headstart-serving/headstart/manifest"
)

// Plan is what Stage would do.
type Plan struct {
	Model   manifest.Model
	Ref     string // the branch or tag that would point to it; "" for none
	Already bool   // nothing would be copied
	Files   []PlannedFile
	Left    []LeftOut
	Odd     []string // what is odd about the weights and stops no server
}

// PlannedFile is a file that is taken.
type PlannedFile struct {
	RemoteFile
	There int64 // bytes of it that the bucket has from earlier runs
	Copy  bool  // it would be copied inside the bucket from another commit
}

// Total returns the bytes of the model, how many of them earlier runs left in the bucket, and how many
// would be copied inside it. The rest would be fetched.
func (p Plan) Total() (size, there, copied int64) {
	for _, f := range p.Files {
		size += f.Size
		if f.Copy {
			copied += f.Size
		} else {
			there += f.There
		}
	}
	return size, there, copied
}

// peeker is a Store that says, without a write, which parts an Upload of the object would find.
type peeker interface {
	Peek(ctx context.Context, key, dir string) ([]Part, error)
}

// Plan says what Stage would do, and fails where Stage would fail before its first write. It writes
// nothing.
func (s *Stager) Plan(ctx context.Context, ref manifest.Reference) (Plan, error) {
	p, err := s.plan(ctx, ref)
	if err != nil {
		return p, fmt.Errorf("planning %s to %s: %w", ref, s.Store, err)
	}
	return p, nil
}

func (s *Stager) plan(ctx context.Context, ref manifest.Reference) (Plan, error) {
	v, err := s.survey(ctx, ref)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Model: v.snapshot.Model, Ref: v.snapshot.Ref, Already: v.staged()}
	t := &transfer{Config: s.Config, model: p.Model, there: v.there}
	choice, err := s.take(ctx, v, t)
	if err != nil {
		return Plan{}, err
	}
	p.Left = choice.Left
	if p.Odd, err = t.inspect(ctx, choice, v); err != nil {
		return Plan{}, err
	}
	for _, f := range choice.Files {
		there, err := t.stored(ctx, f)
		if err != nil {
			return Plan{}, err
		}
		_, same := t.unchanged[f.Path]
		p.Files = append(p.Files, PlannedFile{f, there, same && there < f.Size})
	}
	return p, nil
}

// stored returns how many bytes of a file the bucket has.
func (t *transfer) stored(ctx context.Context, f RemoteFile) (int64, error) {
	key := t.model.Object(f.Path)
	if o, ok := t.there[key]; ok {
		if o.Size != f.Size {
			return 0, t.occupied(f, fmt.Sprintf("%d bytes instead of %d", o.Size, f.Size))
		}
		return f.Size, nil
	}
	partSize := t.ChunkSize * int64(t.PartChunks)
	store, ok := t.Store.(peeker)
	if !ok || f.Size <= partSize {
		return 0, nil
	}
	parts, err := store.Peek(ctx, key, dirOf(t.model, f.Path))
	if err != nil {
		return 0, err
	}
	there := int64(0)
	for _, p := range plan(f, parts, t.ChunkSize, partSize) {
		if p.have != nil {
			there += p.Size
		}
	}
	return there, nil
}
