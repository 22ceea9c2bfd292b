package sweep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// Done is what a Plan's execution has removed so far.
type Done struct {
	Objects int
	Bytes   int64
}

// sweeping is the execution of a Plan.
type sweeping struct {
	Bucket
	progress func(Done)

	mu   sync.Mutex
	done Done
}

// Run removes what the plan names, item by item. progress (optional) is told after each object. What is in
// the way of one item, because somebody is at work with it, stops none of the others: the error, which wraps
// fs.ErrExist or syscall.EBUSY then, joins what was left and why.
func Run(ctx context.Context, b Bucket, p Plan, progress func(Done)) (Done, error) {
	s := &sweeping{Bucket: b, progress: progress}
	var left []error
	for _, i := range p {
		err := s.item(ctx, i)
		if err != nil && !inTheWay(err) {
			return s.done, errors.Join(append(left, err)...)
		}
		if err != nil {
			left = append(left, err)
		}
	}
	return s.done, errors.Join(left...)
}

func inTheWay(err error) bool { return errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.EBUSY) }

func (s *sweeping) item(ctx context.Context, i Item) error {
	switch {
	case i.Manifest.Key != "":
		return s.commit(ctx, i)
	case i.Why == Temporary:
		return s.removeAll(ctx, i.Parts)
	case i.Why == Finished:
		return s.parts(ctx, i)
	}
	return s.leftover(ctx, i)
}

// commit removes a commit that is staged.
func (s *sweeping) commit(ctx context.Context, i Item) error {
	data, err := noteFor(i)
	if err != nil {
		return err
	}
	if err := writeNote(ctx, s, i.Model, data); err != nil {
		return fmt.Errorf("noting the removal of %s: %w", i.Model, err)
	}
	for _, r := range i.Refs {
		// A ref that was replaced names another commit now.
		if err := s.remove(ctx, r.Object); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := s.remove(ctx, i.Manifest); err != nil {
		return err
	}
	return s.rest(ctx, i)
}

// leftover removes a commit that is not staged, if it is as it was.
func (s *sweeping) leftover(ctx context.Context, i Item) error {
	if err := s.unstaged(ctx, i.Model, "was staged just now and stays"); err != nil {
		return err
	}
	objects, err := inventory.Objects(ctx, s, i.Model)
	if err != nil {
		return err
	}
	parts, err := inventory.Parts(ctx, s, i.Model)
	if err != nil {
		return err
	}
	if news(i.Parts, parts) > 0 || news(i.Objects, objects) > i.Stay {
		return stager.Fail(syscall.EBUSY, "%s is being staged and stays", i.Model)
	}
	for _, r := range i.Refs {
		if err := s.remove(ctx, r.Object); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return s.rest(ctx, i)
}

// news counts what is there now and was not before.
func news(before, now []stager.Object) (n int) {
	was := make(map[string]int64, len(before))
	for _, o := range before {
		was[o.Key] = o.Version
	}
	for _, o := range now {
		if v, ok := was[o.Key]; !ok || v != o.Version {
			n++
		}
	}
	return n
}

// rest removes the files of a commit, then what was kept for it, at last the note of the removal.
func (s *sweeping) rest(ctx context.Context, i Item) error {
	if err := s.removeAll(ctx, i.Objects); err != nil {
		return err
	}
	if err := s.parts(ctx, i); err != nil {
		return err
	}
	return s.unstaged(ctx, i.Model, "was staged again while it was being removed: run: headstart stage "+i.Model.String())
}

// parts removes what was kept for a commit, at last the note of its removal.
func (s *sweeping) parts(ctx context.Context, i Item) error {
	isNote := func(o stager.Object) bool { return o.Key == noteOf(i.Model) }
	if err := s.removeAll(ctx, slices.DeleteFunc(slices.Clone(i.Parts), isNote)); err != nil {
		return err
	}
	// Listed now: it was written, or written anew, after the plan was made.
	parts, err := inventory.Parts(ctx, s, i.Model)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(parts, isNote)
	switch {
	case n < 0:
		return nil
	case slices.ContainsFunc(i.Parts, isNote):
		return s.remove(ctx, parts[n])
	}
	return s.Remove(ctx, parts[n]) // not in the plan, and not counted
}

// unstaged fails where the model has a manifest.
func (s *sweeping) unstaged(ctx context.Context, m manifest.Model, what string) error {
	_, _, err := s.Get(ctx, m.Key(), manifest.MaxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil || errors.Is(err, manifest.ErrInvalid):
		return stager.Fail(syscall.EBUSY, "%s %s", m, what)
	}
	return err
}

// removeAll removes objects, as many as it may.
func (s *sweeping) removeAll(ctx context.Context, objects []stager.Object) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	left := make([]error, len(objects))
	for n, o := range objects {
		group.Go(func() error {
			err := s.remove(ctx, o)
			if inTheWay(err) {
				left[n] = err
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return errors.Join(left...)
}

func (s *sweeping) remove(ctx context.Context, o stager.Object) error {
	if err := s.Remove(ctx, o); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done.Objects++
	s.done.Bytes += o.Size
	if s.progress != nil {
		s.progress(s.done)
	}
	return nil
}
