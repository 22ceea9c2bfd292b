package bucket

import (
	"net/http"
	"time"
)

// patchObject answers PATCH of an object: the fields that are given change.
func (s *Server) patchObject(w http.ResponseWriter, r *http.Request, rt route) error {
	return s.changeObject(w, r, rt, func(a *attributes, body objectBody) error { return a.apply(body) })
}

// updateObject answers PUT of an object: fields that are not given are cleared.
func (s *Server) updateObject(w http.ResponseWriter, r *http.Request, rt route) error {
	return s.changeObject(w, r, rt, func(a *attributes, body objectBody) error {
		*a = attributes{StorageClass: a.StorageClass}
		return a.apply(body)
	})
}

func (s *Server) changeObject(w http.ResponseWriter, r *http.Request, rt route, change func(*attributes, objectBody) error) error {
	body, err := decodeBody(r.Body)
	if err != nil {
		return err
	}
	o, err := s.change(r, rt, func(a *attributes) error { return change(a, body) })
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(o.numbers()))
	return writeJSON(w, http.StatusOK, o.resource(r, rt.bucket))
}

// change gives an object new attributes and the next metageneration.
func (s *Server) change(r *http.Request, rt route, change func(*attributes) error) (*object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, old, err := s.conditionalObject(r, rt)
	if err != nil {
		return nil, err
	}
	if !old.live() {
		return nil, errUnsupported("changes of noncurrent objects")
	}
	o := *old
	if err := change(&o.Attributes); err != nil {
		return nil, err
	}
	o.Metageneration++
	o.Updated = time.Now().UTC()
	return &o, b.replace(old, &o)
}

// conditionalObject returns the object that r names if r's conditions allow a change of it.
// The caller holds mu.
func (s *Server) conditionalObject(r *http.Request, rt route) (*bucket, *object, error) {
	b, err := s.lookup(rt.bucket)
	if err != nil {
		return nil, nil, err
	}
	generation, err := queryGeneration(r, "generation")
	if err != nil {
		return nil, nil, err
	}
	cond, err := requestConditions(r)
	if err != nil {
		return nil, nil, err
	}
	o, err := b.find(rt.object, generation)
	if err != nil {
		return nil, nil, err
	}
	return b, o, cond.forWrite(o)
}

// deleteObject answers DELETE of either API.
func (s *Server) deleteObject(w http.ResponseWriter, r *http.Request, rt route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, o, err := s.conditionalObject(r, rt)
	if err != nil {
		return err
	}
	forGood := r.URL.Query().Get("generation") != ""
	if !o.live() {
		err = b.deleteGeneration(o)
	} else {
		err = b.remove(o, forGood)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
