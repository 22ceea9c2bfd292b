package bucket

import (
	"net/http"
	"os"
	"time"
)

// copyRequest is a copy, rewrite or move: the source in the path, and what the destination becomes.
type copyRequest struct {
	generation int64 // of the source; 0: the live one
	source     conditions
	target     conditions
	body       objectBody
	remove     bool // the source goes away: a move
}

func parseCopy(r *http.Request, rt route) (c copyRequest, err error) {
	if c.body, err = decodeBody(r.Body); err != nil {
		return c, err
	}
	q := r.URL.Query()
	if c.generation, err = queryGeneration(r, "sourceGeneration"); err != nil {
		return c, err
	}
	if c.source, err = parseConditions(q, "ifSource", nil); err != nil {
		return c, err
	}
	c.target, err = parseConditions(q, "if", nil)
	if err == nil {
		err = checkObjectName(rt.object)
	}
	return c, err
}

// copyObject answers copyTo and moveTo.
func (s *Server) copyObject(w http.ResponseWriter, r *http.Request, rt route) error {
	o, err := s.copyRequested(r, rt)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(o.numbers()))
	return writeJSON(w, http.StatusOK, o.resource(r, rt.bucket))
}

// rewriteObject answers rewriteTo, always done in one call.
func (s *Server) rewriteObject(w http.ResponseWriter, r *http.Request, rt route) error {
	o, err := s.copyRequested(r, rt)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Kind      string         `json:"kind"`
		Rewritten string         `json:"totalBytesRewritten"`
		Size      string         `json:"objectSize"`
		Done      bool           `json:"done"`
		Resource  objectResource `json:"resource"`
	}{"storage#rewriteResponse", itoa(o.Size), itoa(o.Size), true, o.resource(r, rt.bucket)})
}

func (s *Server) copyRequested(r *http.Request, rt route) (*object, error) {
	c, err := parseCopy(r, rt)
	if err != nil {
		return nil, err
	}
	c.remove = rt.op == "storage.objects.move"
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.lookup(rt.sourceBucket)
	if err != nil {
		return nil, err
	}
	to, err := s.lookup(rt.bucket)
	if err != nil {
		return nil, err
	}
	src, err := from.find(rt.source, c.generation)
	if err != nil {
		return nil, err
	}
	if err := c.source.forWrite(src); err != nil {
		return nil, err
	}
	return s.copy(from, to, src, rt.object, c)
}

// copy makes the destination. A body replaces the source's attributes, an empty one keeps them.
func (s *Server) copy(from, to *bucket, src *object, name string, c copyRequest) (*object, error) {
	o := *src
	o.Name, o.Upload, o.Deleted = name, "", time.Time{}
	if len(c.body) > 0 {
		o.Attributes = attributes{}
		if err := o.Attributes.apply(c.body); err != nil {
			return nil, err
		}
		if o.Attributes.ContentType == "" {
			o.Attributes.ContentType = src.Attributes.ContentType
		}
	}
	if c.remove && name == src.Name {
		return nil, errInvalid("The source and the destination of a move are the same object.")
	}
	if err := c.target.forWrite(to.objects[name]); err != nil {
		return nil, err
	}
	if from != to {
		pieces, err := linkPieces(from, to, src.Pieces)
		if err != nil {
			return nil, err
		}
		o.Pieces = pieces
	}
	if err := s.put(to, &o, c.target); err != nil {
		return nil, err
	}
	if c.remove {
		return &o, from.remove(src, false)
	}
	return &o, nil
}

// linkPieces gives the bytes of pieces a second name in another bucket's folder.
func linkPieces(from, to *bucket, pieces []piece) ([]piece, error) {
	linked := make([]piece, 0, len(pieces))
	for _, p := range pieces {
		id := newID()
		if err := os.Link(from.blobPath(p.Blob), to.blobPath(id)); err != nil {
			return nil, err
		}
		linked = append(linked, piece{id, p.Size})
	}
	return linked, nil
}
