package bucket

import (
	"os"
	"slices"
	"time"
)

// bucket is one folder. The server's mutex guards all of it but Name and dir, which do not change.
type bucket struct {
	Name string
	dir  string
	bucketAttributes

	objects  map[string]*object
	names    []string             // of objects, in the order of their bytes
	older    map[string][]*object // generations that are not live, by name
	sessions map[string]*session
	refs     map[string]int // how many records and readers hold a blob
}

// lookup returns a bucket. The caller holds mu.
func (s *Server) lookup(name string) (*bucket, error) {
	if b := s.buckets[name]; b != nil {
		return b, nil
	}
	if err := checkBucketName(name); err != nil {
		return nil, err
	}
	return nil, errNoBucket(name)
}

// find returns an object at a generation; 0 is the live one. The caller holds mu.
func (b *bucket) find(name string, generation int64) (*object, error) {
	if err := checkObjectName(name); err != nil {
		return nil, err
	}
	o := b.objects[name]
	if generation != 0 && (o == nil || generation != o.Generation) {
		o = b.findOlder(name, generation, false)
	}
	if o == nil {
		return nil, errNoObject(b.Name, name)
	}
	return o, nil
}

// put makes o the live object of its name if cond holds: the one place where an object appears.
// It sets the generation, the first metageneration and the times. The caller holds mu.
func (s *Server) put(b *bucket, o *object, cond conditions) error {
	if s.buckets[b.Name] != b {
		return errNoBucket(b.Name) // deleted while the bytes came in
	}
	old := b.objects[o.Name]
	if err := cond.forWrite(old); err != nil {
		return err
	}
	if old != nil && s.denied["storage.objects.delete"] {
		return errDenied("storage.objects.delete")
	}
	if old != nil && !b.Versioning { // a noncurrent object is kept, and so the policies are
		if err := b.keeps(old); err != nil {
			return err
		}
	}
	o.Attributes.EventBasedHold = o.Attributes.EventBasedHold || b.DefaultHold
	o.Generation, o.Metageneration = s.nextGeneration(), 1
	o.Created = time.UnixMicro(o.Generation).UTC()
	o.Updated = o.Created
	if old == nil {
		return b.replace(nil, o)
	}
	// Written before the new record: a server that is killed in between has both, and drops this one.
	b.hold(old.Pieces)
	if err := b.retire(old, false); err != nil {
		return err
	}
	return b.replace(old, o)
}

// replace writes o's record and only then lets go of old's bytes.
func (b *bucket) replace(old, o *object) error {
	if err := writeRecord(b.recordPath(o.Name), o); err != nil {
		return err
	}
	b.insert(o)
	if old != nil {
		b.release(old.Pieces)
	}
	return nil
}

// remove deletes o, which is live; forGood as retire has it. The caller holds mu.
func (b *bucket) remove(o *object, forGood bool) error {
	if !b.Versioning || forGood {
		if err := b.keeps(o); err != nil {
			return err
		}
	}
	b.hold(o.Pieces)
	if err := b.retire(o, forGood); err != nil {
		return err
	}
	if err := os.Remove(b.recordPath(o.Name)); err != nil {
		return err
	}
	delete(b.objects, o.Name)
	i, _ := slices.BinarySearch(b.names, o.Name)
	b.names = slices.Delete(b.names, i, i+1)
	b.release(o.Pieces)
	return nil
}

// hold keeps the bytes of pieces until release. The caller holds mu.
func (b *bucket) hold(pieces []piece) {
	for _, p := range pieces {
		b.refs[p.Blob]++
	}
}

// release lets go of pieces; blobs that nobody holds any more are removed. The caller holds mu.
func (b *bucket) release(pieces []piece) {
	for _, p := range pieces {
		b.refs[p.Blob]--
		if b.refs[p.Blob] <= 0 {
			delete(b.refs, p.Blob)
			// A blob that stays behind costs space until the next start, nothing else.
			os.Remove(b.blobPath(p.Blob))
		}
	}
}

// reader is an object whose bytes stay as long as it is open, whatever happens to its name.
type reader struct {
	*object
	server *Server
	bucket *bucket
}

// openObject finds an object and holds its bytes.
func (s *Server) openObject(bucket, name string, generation int64, softDeleted bool) (*reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(bucket)
	if err != nil {
		return nil, err
	}
	var o *object
	if softDeleted {
		if o = b.findOlder(name, generation, true); o == nil {
			return nil, errNoObject(bucket, name)
		}
	} else if o, err = b.find(name, generation); err != nil {
		return nil, err
	}
	b.hold(o.Pieces)
	return &reader{object: o, server: s, bucket: b}, nil
}

func (rd *reader) close() {
	rd.server.mu.Lock()
	defer rd.server.mu.Unlock()
	rd.bucket.release(rd.Pieces)
}

func errHeld(bucket, name string) error {
	return &apiError{
		status: 403, reason: "forbidden", code: "ObjectUnderActiveHold",
		message: "Object '" + bucket + "/" + clip(name) + "' is under active hold and cannot be deleted, overwritten or archived until hold is removed.",
	}
}
