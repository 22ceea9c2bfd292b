package bucket

import (
	"encoding/json"
	"net/http"

	"github.com/headstart-serving/headstart/manifest"
)

// maxSources is how many objects one compose takes.
const maxSources = 32

type composeSource struct {
	Name          string
	Generation    json.Number
	Preconditions struct {
		Generation *json.Number `json:"ifGenerationMatch"`
	} `json:"objectPreconditions"`
}

// composeRequest is the body of a compose.
type composeRequest struct {
	sources       []composeSource
	deleteSources bool
	draft         draft
}

func parseCompose(r *http.Request, rt route) (c composeRequest, err error) {
	body, err := decodeBody(r.Body)
	if err != nil {
		return c, err
	}
	if raw, ok := body["sourceObjects"]; ok && json.Unmarshal(raw, &c.sources) != nil {
		return c, errInvalid("Invalid value for field sourceObjects.")
	}
	if raw, ok := body["deleteSourceObjects"]; ok && json.Unmarshal(raw, &c.deleteSources) != nil {
		return c, errInvalid("Invalid value for field deleteSourceObjects.")
	}
	switch n := len(c.sources); {
	case n == 0:
		return c, errRequired("You must provide at least one source component.")
	case n > maxSources:
		return c, errInvalid("The number of source components provided (%d) exceeds the maximum (%d)", n, maxSources)
	}
	destination := objectBody{}
	if raw, ok := body["destination"]; ok && json.Unmarshal(raw, &destination) != nil {
		return c, errInvalid("Invalid value for field destination.")
	}
	c.draft.Name = rt.object
	if err := checkObjectName(rt.object); err != nil {
		return c, err
	}
	if err := c.draft.Attributes.apply(destination); err != nil {
		return c, err
	}
	if c.draft.Declared, err = destination.hashes(); err != nil {
		return c, err
	}
	c.draft.Conditions, err = requestConditions(r)
	return c, err
}

// composeObjects answers POST …/o/DESTINATION/compose. No byte is copied: the new object is made of
// its sources' blobs.
func (s *Server) composeObjects(w http.ResponseWriter, r *http.Request, rt route) error {
	c, err := parseCompose(r, rt)
	if err != nil {
		return err
	}
	o, err := s.compose(rt.bucket, c)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(o.numbers()))
	return writeJSON(w, http.StatusOK, o.resource(r, rt.bucket))
}

func (s *Server) compose(bucket string, c composeRequest) (*object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(bucket)
	if err != nil {
		return nil, err
	}
	sources, err := b.composeSources(c.sources)
	if err != nil {
		return nil, err
	}
	o := &object{Name: c.draft.Name, Attributes: c.draft.Attributes}
	for _, src := range sources {
		o.Pieces = append(o.Pieces, src.Pieces...)
		o.CRC32C = manifest.CombineCRC32C(o.CRC32C, src.CRC32C, src.Size)
		o.Size += src.Size
		o.Components += max(src.Components, 1)
	}
	if o.Size > maxObjectBytes {
		return nil, errInvalid("The composed object would be larger than 5 TiB.")
	}
	if c.draft.Declared.CRC32C != nil {
		if err := (&declared{CRC32C: c.draft.Declared.CRC32C}).check(o.Size, o.CRC32C, nil); err != nil {
			return nil, err
		}
	}
	if err := s.put(b, o, c.draft.Conditions); err != nil {
		return nil, err
	}
	if !c.deleteSources {
		return o, nil
	}
	for _, src := range sources {
		if b.objects[src.Name] == src {
			if err := b.remove(src, false); err != nil {
				return nil, err
			}
		}
	}
	return o, nil
}

// composeSources finds the sources of a compose. The caller holds mu.
func (b *bucket) composeSources(list []composeSource) ([]*object, error) {
	sources := make([]*object, len(list))
	for i, src := range list {
		var generation int64
		if src.Generation != "" {
			n, err := src.Generation.Int64()
			if err != nil || n < 0 {
				return nil, errInvalid("Invalid source generation: %s", clip(src.Generation.String()))
			}
			generation = n
		}
		o, err := b.find(src.Name, generation)
		if err != nil {
			return nil, err
		}
		if want := src.Preconditions.Generation; want != nil && want.String() != itoa(o.Generation) {
			return nil, errPrecondition()
		}
		sources[i] = o
	}
	return sources, nil
}
