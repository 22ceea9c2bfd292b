package stager

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// admit writes something into the bucket before the first byte comes from the source: an account that may
// not write learns that at once and not behind the largest file. It goes with the parts.
func (s *Stager) admit(ctx context.Context, m manifest.Model) error {
	return s.Store.Put(ctx, partsOf(m)+"access", 0, []byte("headstart stages "+m.String()+"\n"))
}

// withdraw takes back what admit wrote, where the run that failed has stored nothing else.
func (s *Stager) withdraw(m manifest.Model) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second) // the run's own may be over
	defer cancel()
	if err := s.Store.Delete(ctx, partsOf(m)+"access"); err != nil {
		s.Log.Debug("the trial of access stays", "model", m, "err", err)
	}
}

// clear removes what was kept for a restart. Where the bucket does not let go of it (a retention policy, a
// hold, an account that may not delete) the model is no less staged: that is said once, with what to do. A
// later run that finds the objects tries again, with one of them first.
func (s *Stager) clear(ctx context.Context, left []Object) (kept Kept, err error) {
	if len(left) == 0 {
		return Kept{}, nil
	}
	var mu sync.Mutex
	var why error
	remove := func(ctx context.Context, o Object) error {
		err := s.Store.Delete(ctx, o.Key)
		if !IsKept(err) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		why = err
		kept.Objects++
		kept.Bytes += o.Size
		return nil
	}
	if err := remove(ctx, left[0]); err != nil {
		return Kept{}, err
	}
	if why == nil {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(16)
		for _, o := range left[1:] {
			group.Go(func() error { return remove(ctx, o) })
		}
		err = group.Wait()
	} else {
		for _, o := range left[1:] {
			kept.Objects++
			kept.Bytes += o.Size
		}
	}
	if why != nil {
		s.Log.Warn(fmt.Sprintf("%d objects of the staging, %d bytes, stay below %s/%sparts/ and are paid for, because the bucket does not let go of them (%v): they are no part of the model; remove them by a lifecycle rule for that prefix",
			kept.Objects, kept.Bytes, strings.TrimSuffix(s.Store.String(), "/"), manifest.Private, why))
	}
	return kept, err
}

// Kept is what could not be removed after a model was staged.
type Kept struct {
	Objects int
	Bytes   int64
}
