package hub

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// xetGrant is what a token for the store holds.
type xetGrant struct {
	Repo    string `json:"repo"`
	Expires int64  `json:"exp"` // seconds since 1970
}

// xetToken gives a token for the store to who may have the repository's files.
func (s *Server) xetToken(c *call, rev string) error {
	repo, done, err := s.at(c, rev, true)
	if err != nil || done {
		return err
	}
	cas, err := s.casBase(c.r)
	if err != nil {
		return err
	}
	g := xetGrant{Repo: repo.Name(), Expires: s.cfg.Now().Add(s.cfg.Signed).Unix()}
	raw, err := json.Marshal(g)
	if err != nil {
		panic("hub: a grant that JSON cannot hold: " + err.Error())
	}
	b64 := base64.RawURLEncoding.EncodeToString
	access := b64(raw) + "." + b64(s.mac(raw))
	h := c.w.Header()
	h.Set("X-Xet-Access-Token", access)
	h.Set("X-Xet-Token-Expiration", fmt.Sprint(g.Expires))
	h.Set("X-Xet-Cas-Url", cas)
	writeJSON(c.w, http.StatusOK, map[string]any{"accessToken": access, "exp": g.Expires, "casUrl": cas})
	return nil
}

// granted returns the repository whose files the bearer of a token may have.
func (s *Server) granted(r *http.Request) (repo string, err error) {
	refused := &refusal{status: http.StatusUnauthorized, message: "Unauthorized"}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	first, second, _ := strings.Cut(token, ".")
	raw, err1 := base64.RawURLEncoding.DecodeString(first)
	mac, err2 := base64.RawURLEncoding.DecodeString(second)
	var g xetGrant
	if !ok || err1 != nil || err2 != nil || !hmac.Equal(mac, s.mac(raw)) || json.Unmarshal(raw, &g) != nil || g.Repo == "" {
		return "", refused
	}
	if !s.cfg.Now().Before(time.Unix(g.Expires, 0)) {
		return "", refused
	}
	return g.Repo, nil
}

// serveCAS answers how files are put together.
func (s *Server) serveCAS(w http.ResponseWriter, r *http.Request) {
	err := s.routeCAS(w, r)
	if err == nil || r.Context().Err() != nil {
		return
	}
	var e *refusal
	if !errors.As(err, &e) {
		s.cfg.Log.Error("request failed", "path", r.URL.Path, "err", err)
		e = &refusal{status: http.StatusInternalServerError, message: err.Error()}
	}
	e.write(w)
}

func (s *Server) routeCAS(w http.ResponseWriter, r *http.Request) error {
	segments, err := split(r.URL.EscapedPath())
	if err != nil || s.cfg.Xet == nil || len(segments) != 3 || segments[1] != "reconstructions" || segments[0] != "v1" && segments[0] != "v2" {
		return &refusal{status: http.StatusNotFound, message: "Not found"}
	}
	if r.Method != http.MethodGet {
		return &refusal{status: http.StatusMethodNotAllowed, message: "Method not allowed"}
	}
	repo, err := s.granted(r)
	if err != nil {
		return err
	}
	f, ok := s.store.file(repo, segments[2])
	if !ok {
		return &refusal{status: http.StatusNotFound, message: "File not found"}
	}
	off, n := int64(0), f.size
	if header := r.Header.Get("Range"); header != "" {
		off, n, err = parseRange(header, f.size)
		switch {
		case errors.Is(err, errUnsatisfiable):
			return &refusal{status: http.StatusRequestedRangeNotSatisfiable, message: "Range not satisfiable"}
		case err != nil:
			return malformed("Range: %v", err)
		}
	}
	return s.reconstruct(w, r, f, off, off+n, segments[0] == "v2")
}

// span is a range in an answer of the store: of chunks end-exclusive, of bytes end-inclusive.
type span struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

type term struct {
	Hash   string `json:"hash"`
	Length int64  `json:"unpacked_length"`
	Range  span   `json:"range"`
}

// fetchV1 and fetchV2 say where a range of a xorb's chunks is.
type fetchV1 struct {
	Range    span   `json:"range"`
	URL      string `json:"url"`
	URLRange span   `json:"url_range"`
}

type fetchV2 struct {
	URL    string    `json:"url"`
	Ranges []rangeV2 `json:"ranges"`
}

type rangeV2 struct {
	Chunks span `json:"chunks"`
	Bytes  span `json:"bytes"`
}

func (s *Server) reconstruct(w http.ResponseWriter, r *http.Request, f xetFile, off, end int64, second bool) error {
	list, skip, err := f.layout.Terms(off, end)
	if err != nil {
		return err
	}
	terms := make([]term, 0, len(list))
	v1, v2 := map[string][]fetchV1{}, map[string][]fetchV2{}
	for _, t := range list {
		hash := f.names.Xorbs[t.Xorb].String()
		bytes := span{t.Bytes.Start, t.Bytes.End - 1}
		url, err := s.signXorb(r, f.layout, t.Xorb, hash, bytes)
		if err != nil {
			return err
		}
		chunks := span{t.Chunks.Start, t.Chunks.End}
		terms = append(terms, term{Hash: hash, Length: t.Length, Range: chunks})
		v1[hash] = append(v1[hash], fetchV1{Range: chunks, URL: url, URLRange: bytes})
		v2[hash] = append(v2[hash], fetchV2{URL: url, Ranges: []rangeV2{{Chunks: chunks, Bytes: bytes}}})
	}
	answer := map[string]any{"offset_into_first_range": skip, "terms": terms, "fetch_info": v1}
	if second {
		delete(answer, "fetch_info")
		answer["xorbs"] = v2
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// signedRange is the parameter of a xorb's URL that says for which Range header it was signed.
const signedRange = "X-Xet-Signed-Range"

func (s *Server) signXorb(r *http.Request, l *xorb.Layout, i int64, hash string, bytes span) (string, error) {
	size, err := l.Size(i)
	if err != nil {
		return "", err
	}
	o := object{repo: &xorbRepo{layout: l, xorb: i}, file: &File{Path: hash, Size: size, LFS: true}, etag: `"` + hash + `"`}
	return s.signed(r, "/xorbs/default/"+hash, signedRange+"="+url.QueryEscape(fmt.Sprintf("bytes=%d-%d", bytes.Start, bytes.End)), o)
}

// xorbRepo is a xorb in the place of a repository with one file.
type xorbRepo struct {
	Repo
	layout *xorb.Layout
	xorb   int64
}

func (r *xorbRepo) Open(string) (io.ReaderAt, error) { return r.layout.Open(r.xorb) }
