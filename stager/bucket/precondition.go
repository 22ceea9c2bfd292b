package bucket

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// conditions are what a client wants to be true of an object before a request has an effect; nil
// where it says nothing. An object that does not exist has generation and metageneration 0.
type conditions struct {
	Generation        *int64 `json:",omitempty"`
	GenerationNot     *int64 `json:",omitempty"`
	Metageneration    *int64 `json:",omitempty"`
	MetagenerationNot *int64 `json:",omitempty"`
}

// parseConditions reads both APIs' spelling: query parameters whose names begin with prefix
// ("if", or "ifSource" for the source of a copy), and x-goog-if- headers where headers are given.
func parseConditions(q url.Values, prefix string, h http.Header) (conditions, error) {
	var c conditions
	for _, p := range []struct {
		to            **int64
		query, header string
	}{
		{&c.Generation, "GenerationMatch", "X-Goog-If-Generation-Match"},
		{&c.GenerationNot, "GenerationNotMatch", "X-Goog-If-Generation-Not-Match"},
		{&c.Metageneration, "MetagenerationMatch", "X-Goog-If-Metageneration-Match"},
		{&c.MetagenerationNot, "MetagenerationNotMatch", "X-Goog-If-Metageneration-Not-Match"},
	} {
		v := q.Get(prefix + p.query)
		if v == "" && h != nil {
			v = h.Get(p.header)
		}
		if v == "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return c, errInvalid("Invalid value for %s%s: %s", prefix, p.query, clip(v))
		}
		*p.to = &n
	}
	return c, nil
}

// requestConditions reads the conditions of r's object in the spelling of either API.
func requestConditions(r *http.Request) (conditions, error) {
	return parseConditions(r.URL.Query(), "if", r.Header)
}

// forWrite says whether a change to o (nil: no such object) may happen.
func (c conditions) forWrite(o *object) error {
	if c.mismatch(o) || c.unchanged(o) {
		return errPrecondition()
	}
	return nil
}

// forRead says whether o may be answered: a "not match" that matches is 304, as the service has it.
func (c conditions) forRead(o *object) error {
	if c.mismatch(o) {
		return errPrecondition()
	}
	if c.unchanged(o) {
		return errNotModified()
	}
	return nil
}

func (c conditions) mismatch(o *object) bool {
	generation, metageneration := o.numbers()
	return c.Generation != nil && *c.Generation != generation || c.Metageneration != nil && *c.Metageneration != metageneration
}

func (c conditions) unchanged(o *object) bool {
	generation, metageneration := o.numbers()
	return c.GenerationNot != nil && *c.GenerationNot == generation || c.MetagenerationNot != nil && *c.MetagenerationNot == metageneration
}

func (o *object) numbers() (generation, metageneration int64) {
	if o == nil {
		return 0, 0
	}
	return o.Generation, o.Metageneration
}

// checkETags applies If-Match and If-None-Match to a read of an object with these entity tags.
func checkETags(h http.Header, tags ...string) error {
	if v := h.Get("If-Match"); v != "" && !tagsMatch(v, tags) {
		return errPrecondition()
	}
	if v := h.Get("If-None-Match"); v != "" && tagsMatch(v, tags) {
		return errNotModified()
	}
	return nil
}

func tagsMatch(header string, tags []string) bool {
	for item := range strings.SplitSeq(header, ",") {
		item = strings.Trim(strings.TrimPrefix(strings.TrimSpace(item), "W/"), `"`)
		if item == "*" {
			return true
		}
		for _, tag := range tags {
			if item == tag {
				return true
			}
		}
	}
	return false
}
