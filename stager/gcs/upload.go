package gcs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cloud.google.com/go/storage"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

const noteKey = "headstart-note" // metadata of a part

// upload is an object that goes up as objects named by their offset and size, below dir.
type upload struct {
	store *Store
	key   string
	dir   string
	size  int64
	parts []stager.Part // left by earlier runs
	round int           // how often parts were discarded that are still there

	mu          sync.Mutex
	generations map[string]int64 // of the parts, by their keys
}

// piece is an object that is a range of the file: a part, or several composed.
type piece struct {
	stager.Part
	key        string
	generation int64
}

// Upload looks for the parts of earlier runs. Several processes may write the same object.
func (s *Store) Upload(ctx context.Context, key, dir string, size int64) (stager.Upload, error) {
	u := &upload{store: s, key: key, dir: dir, size: size, generations: make(map[string]int64)}
	return u, u.list(ctx)
}

// Peek says which parts of an upload are there.
func (s *Store) Peek(ctx context.Context, key, dir string) ([]stager.Part, error) {
	u := &upload{store: s, key: key, dir: dir, generations: make(map[string]int64)}
	err := u.list(ctx)
	return u.parts, err
}

func (u *upload) list(ctx context.Context) error {
	s, dir := u.store, u.dir
	var all []*storage.ObjectAttrs
	for attrs, err := range s.attrs(ctx, dir, "Name", "Size", "CRC32C", "Generation", "Metadata") {
		if err != nil {
			return err
		}
		if all = append(all, attrs); strings.HasPrefix(attrs.Name, s.Prefix+dir+"void-") {
			u.round++
		}
	}
	for _, attrs := range all {
		key := strings.TrimPrefix(attrs.Name, s.Prefix)
		p := stager.Part{Size: attrs.Size, CRC32C: attrs.CRC32C, Note: []byte(attrs.Metadata[noteKey])}
		if _, err := fmt.Sscanf(strings.TrimPrefix(key, dir+u.kind("part")), "-%016x", &p.Offset); err != nil || u.name("part", p) != key {
			continue // not ours: it is removed with the rest
		}
		u.parts = append(u.parts, p)
		u.generations[key] = attrs.Generation
	}
	slices.SortFunc(u.parts, func(a, b stager.Part) int { return cmp.Compare(a.Offset, b.Offset) })
	return nil
}

func (u *upload) name(kind string, p stager.Part) string {
	return fmt.Sprintf("%s%s-%016x-%x", u.dir, u.kind(kind), p.Offset, p.Size)
}

// kind is other after parts were found to be wrong that the bucket does not let go of.
func (u *upload) kind(kind string) string {
	if u.round == 0 {
		return kind
	}
	return fmt.Sprintf("%s%d", kind, u.round)
}

func (u *upload) Parts() []stager.Part { return u.parts }

// Write stores the part where there is none. One that is there was written by another process, or by a
// request whose answer was lost, and is replaced where it is another one.
func (u *upload) Write(ctx context.Context, p stager.Part, data [][]byte) error {
	key := u.name("part", p)
	expected := int64(0)
	for range races {
		generation, err := u.store.write(ctx, key, expected, p, data)
		if failedPrecondition(err) {
			var attrs *storage.ObjectAttrs
			attrs, err = u.store.object(key).Attrs(ctx)
			if errors.Is(err, storage.ErrObjectNotExist) {
				// The other process has finished the file and removed its parts: Commit will see that.
				expected = 0
				continue
			}
			if err == nil && (attrs.Size != p.Size || attrs.CRC32C != p.CRC32C || attrs.Metadata[noteKey] != string(p.Note)) {
				expected = attrs.Generation
				continue
			}
			if err == nil {
				generation = attrs.Generation
			}
		}
		if err != nil {
			return u.store.explain(key, err)
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.generations[key] = generation
		return nil
	}
	return fmt.Errorf("%s/%s: another process writes this part again and again", u.store, key)
}

// Commit composes the parts as a tree, then removes them as far as it may.
func (u *upload) Commit(ctx context.Context, parts []stager.Part) error {
	level := make([]piece, len(parts))
	whole := stager.Part{}
	for i, p := range parts {
		if p.Offset != whole.Size {
			return fmt.Errorf("the parts of %s leave a gap at %d", u.key, whole.Size)
		}
		whole = join(whole, p)
		key := u.name("part", p)
		level[i] = piece{p, key, u.generations[key]}
	}
	if whole.Size != u.size {
		return fmt.Errorf("the parts of %s end at %d of %d", u.key, whole.Size, u.size)
	}
	made := level
	for len(level) > u.store.fan {
		next, err := u.level(ctx, level)
		if err != nil {
			return u.finished(ctx, whole, err)
		}
		made = append(made, next...)
		level = next
	}
	if _, err := u.compose(ctx, u.key, whole, level); err != nil {
		return u.finished(ctx, whole, err)
	}
	// The object is there. Whoever lists the parts at the end sees what is left.
	if u.store.undeletable.Load() {
		return nil
	}
	if err := u.remove(ctx, made); stager.IsKept(err) {
		u.store.undeletable.Store(true)
	} else if err != nil {
		u.store.Log.Warn("removing the parts of a file", "key", u.key, "err", err)
	}
	return nil
}

// level composes as many pieces into one as the service can. A last one that is alone is the same piece again.
func (u *upload) level(ctx context.Context, pieces []piece) ([]piece, error) {
	fan := u.store.fan
	next := make([]piece, (len(pieces)+fan-1)/fan)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range next {
		some := pieces[i*fan : min((i+1)*fan, len(pieces))]
		if len(some) == 1 {
			next[i] = some[0]
			continue
		}
		group.Go(func() error {
			p := some[0].Part
			for _, s := range some[1:] {
				p = join(p, s.Part)
			}
			key := u.name("join", p)
			generation, err := u.compose(ctx, key, p, some)
			next[i] = piece{p, key, generation}
			return err
		})
	}
	return next, group.Wait()
}

// compose makes an object of pieces. The service compares the sum before the object is visible; the
// generations make sure that the pieces are those that were written.
func (u *upload) compose(ctx context.Context, key string, want stager.Part, pieces []piece) (int64, error) {
	sources := make([]*storage.ObjectHandle, len(pieces))
	for i, p := range pieces {
		sources[i] = u.store.object(p.key).Generation(p.generation)
	}
	o := u.store.object(key)
	c := o.If(storage.Conditions{DoesNotExist: true}).ComposerFrom(sources...)
	c.ContentType = "application/octet-stream"
	c.CRC32C, c.SendCRC32C = want.CRC32C, true
	attrs, err := c.Run(ctx)
	mine := err == nil
	if failedPrecondition(err) {
		attrs, err = o.Attrs(ctx)
	}
	switch {
	case err != nil:
		return 0, err
	case attrs.Size == want.Size && attrs.CRC32C == want.CRC32C:
		return attrs.Generation, nil
	case mine || key != u.key:
		// A service that does not compare the sum; or the remains of a run whose parts were replaced.
		if err := o.If(storage.Conditions{GenerationMatch: attrs.Generation}).Delete(ctx); err != nil {
			return 0, fmt.Errorf("%s came out with other bytes than its parts: remove it and run again (it could not be removed: %s)", key, oneLine(err))
		}
		return 0, fmt.Errorf("%s came out with other bytes than its parts and is removed: run again", key)
	}
	return 0, u.store.occupied(u.key)
}

// finished turns an error into success where another process has made the object meanwhile, and removed
// the parts under our hands.
func (u *upload) finished(ctx context.Context, whole stager.Part, err error) error {
	attrs, absent := u.store.object(u.key).Attrs(ctx)
	if absent != nil || attrs.Size != whole.Size || attrs.CRC32C != whole.CRC32C {
		return u.store.explain(u.key, err)
	}
	return nil
}

// join returns the part that is a followed by b.
func join(a, b stager.Part) stager.Part {
	return stager.Part{Offset: a.Offset, Size: a.Size + b.Size, CRC32C: manifest.CombineCRC32C(a.CRC32C, b.CRC32C, b.Size)}
}

func (u *upload) remove(ctx context.Context, pieces []piece) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	gone := make(map[string]bool, len(pieces))
	for _, p := range pieces {
		if gone[p.key] {
			continue
		}
		gone[p.key] = true
		group.Go(func() error { return u.store.Delete(ctx, p.key) })
	}
	return group.Wait()
}

// Discard removes all that is below dir. Where the bucket does not let go of it, a mark says that it is void.
func (u *upload) Discard(ctx context.Context) error {
	var all []piece
	for o, err := range u.store.List(ctx, u.dir) {
		if err != nil {
			return err
		}
		all = append(all, piece{key: o.Key})
	}
	err := u.remove(ctx, all)
	if stager.IsKept(err) {
		return u.store.Put(ctx, fmt.Sprintf("%svoid-%d", u.dir, u.round), 0)
	}
	return err
}

// Close does nothing: the parts are objects.
func (u *upload) Close() error { return nil }
