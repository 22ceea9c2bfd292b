package bucket

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A bucket may keep generations that are not live any more: noncurrent ones, with versioning, until they
// are deleted by their number; soft-deleted ones until their time is over.
// https://cloud.google.com/storage/docs/object-versioning, https://cloud.google.com/storage/docs/soft-delete

// live reports whether o can be had by its name alone.
func (o *object) live() bool { return o.Deleted.IsZero() && o.SoftDeleted.IsZero() }

// retire takes o, which is live or noncurrent, away: for good, or to where the bucket's policy keeps it.
// forGood is a deletion by generation, which makes no noncurrent object. The caller holds mu, and has
// removed o from where it was.
func (b *bucket) retire(o *object, forGood bool) error {
	now := time.Now().UTC()
	old := *o
	switch {
	case b.Versioning && !forGood:
		old.Deleted = now
	case b.SoftDelete > 0:
		old.SoftDeleted, old.HardDelete = now, now.Add(b.SoftDelete)
	default:
		b.release(o.Pieces)
		return nil
	}
	// The bytes are held as they were: only the record moves.
	if err := writeRecord(b.olderPath(&old), &old); err != nil {
		return err
	}
	b.older[o.Name] = append(b.older[o.Name], &old)
	return nil
}

func (b *bucket) olderPath(o *object) string {
	return filepath.Join(b.dir, "objects", fmt.Sprintf("%s-%d.json", strings.TrimSuffix(recordName(o.Name), ".json"), o.Generation))
}

// forget removes a generation that is not live. The caller holds mu.
func (b *bucket) forget(o *object) error {
	if err := os.Remove(b.olderPath(o)); err != nil {
		return err
	}
	list := slices.DeleteFunc(b.older[o.Name], func(x *object) bool { return x == o })
	if b.older[o.Name] = list; len(list) == 0 {
		delete(b.older, o.Name)
	}
	return nil
}

// expire removes what was soft-deleted long enough ago. The caller holds mu.
func (b *bucket) expire(now time.Time) {
	for _, list := range b.older {
		for _, o := range slices.Clone(list) {
			if !o.SoftDeleted.IsZero() && now.After(o.HardDelete) && b.forget(o) == nil {
				b.release(o.Pieces)
			}
		}
	}
}

// findOlder returns a generation that is not live, or nil.
func (b *bucket) findOlder(name string, generation int64, softDeleted bool) *object {
	for _, o := range b.older[name] {
		if o.Generation == generation && o.SoftDeleted.IsZero() == !softDeleted {
			return o
		}
	}
	return nil
}

// deleteGeneration deletes a noncurrent generation.
func (b *bucket) deleteGeneration(o *object) error {
	if err := b.keeps(o); err != nil {
		return err
	}
	if err := b.forget(o); err != nil {
		return err
	}
	return b.retire(o, true)
}

// restoreObject answers POST …/o/OBJECT/restore?generation=N: a copy of the soft-deleted object becomes live.
func (s *Server) restoreObject(w http.ResponseWriter, r *http.Request, rt route) error {
	generation, err := queryGeneration(r, "generation")
	if err != nil {
		return err
	}
	if generation == 0 {
		return errRequired("Required parameter: generation")
	}
	cond, err := requestConditions(r)
	if err != nil {
		return err
	}
	o, err := s.restore(rt, generation, cond)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, o.resource(r, rt.bucket))
}

func (s *Server) restore(rt route, generation int64, cond conditions) (*object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(rt.bucket)
	if err != nil {
		return nil, err
	}
	b.expire(time.Now())
	src := b.findOlder(rt.object, generation, true)
	if src == nil {
		return nil, errNoObject(rt.bucket, rt.object)
	}
	o := *src
	o.Upload, o.Deleted, o.SoftDeleted, o.HardDelete = "", time.Time{}, time.Time{}, time.Time{}
	return &o, s.put(b, &o, cond)
}

// listGenerations collects one page of a list of versions or of what is soft-deleted. The caller holds mu.
func (b *bucket) listGenerations(q listQuery) listPage {
	var found []*object
	add := func(o *object) {
		if strings.HasPrefix(o.Name, q.Prefix) && o.Name >= q.Start && (q.End == "" || o.Name < q.End) && q.version(o) > q.AfterVersion {
			found = append(found, o)
		}
	}
	for _, o := range b.objects {
		if !q.SoftDeleted {
			add(o)
		}
	}
	for _, list := range b.older {
		for _, o := range list {
			if o.SoftDeleted.IsZero() == !q.SoftDeleted {
				add(o)
			}
		}
	}
	slices.SortFunc(found, func(a, c *object) int {
		return cmp.Or(strings.Compare(a.Name, c.Name), cmp.Compare(a.Generation, c.Generation))
	})
	var page listPage
	last := ""
	for _, o := range found {
		folder := q.folder(o.Name)
		if folder != "" && len(page.Prefixes) > 0 && page.Prefixes[len(page.Prefixes)-1] == folder {
			last = q.version(o)
			continue
		}
		if len(page.Objects)+len(page.Prefixes) == q.Limit {
			page.Next = base64.URLEncoding.EncodeToString([]byte("v" + last))
			break
		}
		if last = q.version(o); folder != "" {
			page.Prefixes = append(page.Prefixes, folder)
			continue
		}
		page.Objects = append(page.Objects, o)
	}
	return page
}

// version orders generations: by name, then by number.
func (q *listQuery) version(o *object) string {
	return fmt.Sprintf("%s\x00%020d", o.Name, o.Generation)
}
