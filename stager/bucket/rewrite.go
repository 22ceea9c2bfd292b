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

// rewrite is a copy that takes several calls.
type rewrite struct {
	from, to   string // bucket/name
	generation int64  // of the source
	done       int64  // bytes
}

// rewriteAnswer is how far a rewrite is. Without a resource the client has to call again with the token.
type rewriteAnswer struct {
	Kind      string          `json:"kind"`
	Rewritten string          `json:"totalBytesRewritten"`
	Size      string          `json:"objectSize"`
	Done      bool            `json:"done"`
	Token     string          `json:"rewriteToken,omitempty"`
	Resource  *objectResource `json:"resource,omitempty"`
}

// rewriteObject answers rewriteTo: with the object, or with a token for the next call.
func (s *Server) rewriteObject(w http.ResponseWriter, r *http.Request, rt route) error {
	answer, err := s.rewriteStep(r, rt)
	if err != nil {
		return err
	}
	if answer != nil {
		return writeJSON(w, http.StatusOK, answer)
	}
	o, err := s.copyRequested(r, rt)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.rewrites, r.URL.Query().Get("rewriteToken"))
	s.mu.Unlock()
	resource := o.resource(r, rt.bucket)
	return writeJSON(w, http.StatusOK, rewriteAnswer{Kind: "storage#rewriteResponse", Rewritten: itoa(o.Size), Size: itoa(o.Size), Done: true, Resource: &resource})
}

// rewriteStep goes on with a rewrite and says how far it is, nil where this call is its last. Nothing is
// copied before that, so what a client gives up costs nothing.
func (s *Server) rewriteStep(r *http.Request, rt route) (*rewriteAnswer, error) {
	token := r.URL.Query().Get("rewriteToken")
	if s.RewriteAtOnce == 0 && token == "" {
		return nil, nil
	}
	generation, err := queryGeneration(r, "sourceGeneration")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.lookup(rt.sourceBucket)
	if err != nil {
		return nil, err
	}
	src, err := from.find(rt.source, generation)
	if err != nil {
		return nil, err
	}
	w := &rewrite{from: rt.sourceBucket + "/" + rt.source, to: rt.bucket + "/" + rt.object, generation: src.Generation}
	if token != "" {
		begun := s.rewrites[token]
		if begun == nil || begun.from != w.from || begun.to != w.to || begun.generation != w.generation {
			return nil, errInvalid("Invalid rewrite token.")
		}
		w = begun
	}
	if w.done+s.RewriteAtOnce >= src.Size {
		return nil, nil // a call that is repeated after a lost answer is the last again
	}
	w.done += s.RewriteAtOnce
	if token == "" {
		token = newID()
		s.rewrites[token] = w
	}
	return &rewriteAnswer{Kind: "storage#rewriteResponse", Rewritten: itoa(w.done), Size: itoa(src.Size), Token: token}, nil
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
		linked = append(linked, piece{id, p.Size, p.Dropped})
	}
	return linked, nil
}
