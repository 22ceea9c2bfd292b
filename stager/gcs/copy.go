package gcs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"cloud.google.com/go/storage"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Copy lets the service copy an object: within one location and storage class that is a change of
// metadata, else the service says after a while how far it is, and the client asks it to go on with the
// token that it got. Nothing is visible before the last answer.
// https://cloud.google.com/storage/docs/json_api/v1/objects/rewrite
//
// What the service declares of the source is compared before, of the copy afterwards. The generation
// sees to it that what is copied is what was compared.
func (s *Store) Copy(ctx context.Context, from, key string, size int64, sum uint32) error {
	source, o := s.object(from), s.object(key)
	attrs, err := source.Attrs(ctx)
	if err != nil {
		return s.explain(from, err)
	}
	if err := compare(from, attrs, size, sum); err != nil {
		return err
	}
	source = source.Generation(attrs.Generation).If(storage.Conditions{GenerationMatch: attrs.Generation})
	attrs, err = o.If(storage.Conditions{DoesNotExist: true}).CopierFrom(source).Run(ctx)
	if err == nil {
		if err := compare(key, attrs, size, sum); err != nil {
			removal := o.If(storage.Conditions{GenerationMatch: attrs.Generation}).Delete(ctx)
			return errors.Join(fmt.Errorf("the copy of %s is wrong and is removed: %w", from, err), removal)
		}
		return nil
	}
	// An answer that got lost, a token that was good only once, another process: what is there decides.
	there, absent := o.Attrs(ctx)
	switch {
	case absent == nil && compare(key, there, size, sum) == nil:
		return nil
	case !failedPrecondition(err):
		return s.explain(from, err)
	case absent == nil:
		return s.occupied(key)
	case errors.Is(absent, storage.ErrObjectNotExist):
		return stager.Fail(fs.ErrNotExist, "%s/%s was replaced while it was being copied", s, from)
	}
	return s.explain(key, absent)
}

func compare(key string, attrs *storage.ObjectAttrs, size int64, sum uint32) error {
	switch {
	case attrs.Size != size:
		return &manifest.MismatchError{Path: key, Size: size, Sum: "size", Want: fmt.Sprint(size), Got: fmt.Sprint(attrs.Size)}
	case attrs.CRC32C != sum:
		return &manifest.MismatchError{Path: key, Size: size, Sum: "crc32c", Want: fmt.Sprintf("%08x", sum), Got: fmt.Sprintf("%08x", attrs.CRC32C)}
	}
	return nil
}

// Remove removes an object if it is the one that was listed. An object that is gone is no error.
func (s *Store) Remove(ctx context.Context, listed stager.Object) error {
	o := s.object(listed.Key)
	err := o.If(storage.Conditions{GenerationMatch: listed.Version}).Delete(ctx)
	if failedPrecondition(err) {
		// Repeated after a lost answer, it meets nothing; or another process was here.
		if _, err = o.Attrs(ctx); err == nil {
			return s.replaced(listed.Key)
		}
	}
	if errors.Is(err, storage.ErrObjectNotExist) {
		return nil
	}
	return s.explain(listed.Key, err)
}
