package bucket

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// maxResults is the longest page of a list.
const maxResults = 1000

// listQuery says what of a bucket to list.
type listQuery struct {
	Prefix, Delimiter        string
	Start, End               string // names from Start on, before End ("": no end)
	IncludeTrailingDelimiter bool
	After                    string // continue behind this object,
	AfterPrefix              string // or behind everything that begins with this
	Limit                    int
	Versions, SoftDeleted    bool
	AfterVersion             string // continue behind this generation: see version
}

// listPage is what a listQuery found.
type listPage struct {
	Objects  []*object
	Prefixes []string
	Next     string // token of the next page; "" at the end
}

// list collects one page. The caller holds mu.
func (b *bucket) list(q listQuery) listPage {
	var page listPage
	last := ""
	from := max(q.Prefix, q.Start, q.After, q.AfterPrefix)
	i, _ := slices.BinarySearch(b.names, from)
	for i < len(b.names) {
		name := b.names[i]
		if !strings.HasPrefix(name, q.Prefix) || q.End != "" && name >= q.End {
			break
		}
		if q.After != "" && name <= q.After || q.AfterPrefix != "" && strings.HasPrefix(name, q.AfterPrefix) {
			i++
			continue
		}
		if len(page.Objects)+len(page.Prefixes) == q.Limit {
			page.Next = last
			break
		}
		folder := q.folder(name)
		if folder == "" || q.IncludeTrailingDelimiter && folder == name {
			page.Objects = append(page.Objects, b.objects[name])
			last = pageToken("o", name)
			i++
		}
		if folder != "" {
			page.Prefixes = append(page.Prefixes, folder)
			last = pageToken("p", folder)
			i += sort.Search(len(b.names)-i, func(k int) bool {
				return b.names[i+k] > folder && !strings.HasPrefix(b.names[i+k], folder)
			})
		}
	}
	return page
}

// folder returns the prefix that stands for name in a list with a delimiter, or "".
func (q *listQuery) folder(name string) string {
	if q.Delimiter == "" {
		return ""
	}
	rest := name[len(q.Prefix):]
	i := strings.Index(rest, q.Delimiter)
	if i < 0 {
		return ""
	}
	return name[:len(q.Prefix)+i+len(q.Delimiter)]
}

func pageToken(kind, name string) string {
	return base64.URLEncoding.EncodeToString([]byte(kind + name))
}

func (q *listQuery) resume(token string) error {
	if token == "" {
		return nil
	}
	data, err := base64.URLEncoding.DecodeString(token)
	if err != nil || len(data) < 2 || len(data) > maxNameBytes+22 {
		return errInvalid("Invalid page token: %s", clip(token))
	}
	switch data[0] {
	case 'o':
		q.After = string(data[1:])
	case 'v':
		q.AfterVersion = string(data[1:])
	case 'p':
		q.AfterPrefix = string(data[1:])
	default:
		return errInvalid("Invalid page token: %s", clip(token))
	}
	return nil
}

// parseListQuery reads the JSON API's spelling.
func parseListQuery(v url.Values) (listQuery, error) {
	q := listQuery{
		Prefix: v.Get("prefix"), Delimiter: v.Get("delimiter"), Start: v.Get("startOffset"), End: v.Get("endOffset"),
		IncludeTrailingDelimiter: v.Get("includeTrailingDelimiter") == "true", Limit: maxResults,
	}
	if v.Get("matchGlob") != "" {
		return q, errUnsupported("matchGlob")
	}
	q.Versions, q.SoftDeleted = v.Get("versions") == "true", v.Get("softDeleted") == "true"
	if q.Versions && q.SoftDeleted {
		return q, errInvalid("versions and softDeleted cannot both be set.")
	}
	if s := v.Get("maxResults"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return q, errInvalid("Invalid value for maxResults: %s", clip(s))
		}
		if n > 0 {
			q.Limit = min(n, maxResults)
		}
	}
	return q, q.resume(v.Get("pageToken"))
}

// listObjects answers GET /storage/v1/b/BUCKET/o.
func (s *Server) listObjects(w http.ResponseWriter, r *http.Request, rt route) error {
	q, err := parseListQuery(r.URL.Query())
	if err != nil {
		return err
	}
	page, err := s.listBucket(rt.bucket, q)
	if err != nil {
		return err
	}
	answer := struct {
		Kind     string           `json:"kind"`
		Next     string           `json:"nextPageToken,omitempty"`
		Prefixes []string         `json:"prefixes,omitempty"`
		Items    []objectResource `json:"items,omitempty"`
	}{Kind: "storage#objects", Next: page.Next, Prefixes: page.Prefixes}
	for _, o := range page.Objects {
		answer.Items = append(answer.Items, o.resource(r, rt.bucket))
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (s *Server) listBucket(name string, q listQuery) (listPage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(name)
	if err != nil {
		return listPage{}, err
	}
	if q.Versions || q.SoftDeleted {
		b.expire(time.Now())
		return b.listGenerations(q), nil
	}
	return b.list(q), nil
}
