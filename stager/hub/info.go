package hub

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// info answers with a model's description at a revision.
func (s *Server) info(c *call, rev string) error {
	repo, done, err := s.at(c, rev, false)
	if err != nil || done {
		return err
	}
	query := c.r.URL.Query()
	blobs := query.Get("blobs") == "true"
	if blobs && query.Has("expand") {
		return malformed("blobs and expand exclude each other")
	}
	siblings, err := s.siblings(c.r, repo, blobs)
	if err != nil {
		return err
	}
	policy := s.cfg.Policies[c.name]
	author, _, _ := strings.Cut(c.name, "/")
	modified := repo.LastModified().UTC().Format(timeFormat)
	answer := map[string]any{
		"_id": repoID(c.name), "id": c.name, "modelId": c.name, "author": author,
		"sha": repo.Commit(), "private": policy.Private, "gated": gate(policy), "disabled": policy.Disabled,
		"lastModified": modified, "createdAt": modified, "tags": []string{"safetensors"},
		"downloads": 0, "likes": 0, "siblings": siblings,
	}
	if query.Get("securityStatus") == "true" {
		answer["securityRepoStatus"] = map[string]any{"scansDone": true, "filesWithIssues": []string{}}
	}
	if query.Has("expand") {
		maps.DeleteFunc(answer, func(k string, _ any) bool {
			return k != "_id" && k != "id" && !slices.Contains(query["expand"], k)
		})
	}
	writeJSON(c.w, http.StatusOK, answer)
	return nil
}

const timeFormat = "2006-01-02T15:04:05.000Z"

type sibling struct {
	Name   string      `json:"rfilename"`
	Size   json.Number `json:"size,omitempty"`
	BlobID string      `json:"blobId,omitempty"`
	LFS    *siblingLFS `json:"lfs,omitempty"`
}

// siblingLFS has "sha256" where the tree has "oid".
type siblingLFS struct {
	SHA256      string      `json:"sha256"`
	Size        json.Number `json:"size"`
	PointerSize int         `json:"pointerSize"`
}

// siblings lists the files as the model info does: names, and with blobs what the tree knows of them.
func (s *Server) siblings(r *http.Request, repo Repo, blobs bool) ([]sibling, error) {
	list := []sibling{}
	if !blobs {
		for _, f := range repo.Files() {
			list = append(list, sibling{Name: f.Path})
		}
		return list, nil
	}
	entries, err := s.listing(r, repo)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		b := sibling{Name: e.Path, Size: e.Size, BlobID: e.OID}
		if e.LFS != nil {
			b.LFS = &siblingLFS{SHA256: e.LFS.OID, Size: e.LFS.Size, PointerSize: e.LFS.PointerSize}
		}
		list = append(list, b)
	}
	return list, nil
}

func gate(p Policy) any {
	if p.Gated == "" {
		return false
	}
	return p.Gated
}

// repoID is a stable identifier of 24 hex digits.
func repoID(name string) string {
	sum := sha1.Sum([]byte(name))
	return fmt.Sprintf("%x", sum[:12])
}

type gitRef struct {
	Name   string `json:"name"`
	Ref    string `json:"ref"`
	Commit string `json:"targetCommit"`
}

// refs lists branches and tags, main first.
func (s *Server) refs(c *call) error {
	h, done, err := s.repo(c, false)
	if err != nil || done {
		return err
	}
	lists := map[string][]gitRef{"heads": {{Name: "main", Ref: mainRef, Commit: h.refs[mainRef]}}, "tags": {}, "pr": {}}
	for _, full := range slices.Sorted(maps.Keys(h.refs)) {
		kind, name, _ := strings.Cut(strings.TrimPrefix(full, "refs/"), "/")
		if full == mainRef {
			continue
		}
		if kind == "pr" {
			name = full
		}
		lists[kind] = append(lists[kind], gitRef{Name: name, Ref: full, Commit: h.refs[full]})
	}
	answer := map[string]any{"branches": lists["heads"], "tags": lists["tags"], "converts": []gitRef{}}
	if c.r.URL.Query().Get("include_prs") == "1" {
		answer["pullRequests"] = lists["pr"]
	}
	writeJSON(c.w, http.StatusOK, answer)
	return nil
}

// authCheck says whether the caller may have a repository's files; writing is for nobody.
func (s *Server) authCheck(c *call) error {
	_, done, err := s.repo(c, true)
	if err != nil || done {
		return err
	}
	if len(c.rest) > 1 {
		return &refusal{status: http.StatusForbidden, message: "This Hub is read-only"}
	}
	writeJSON(c.w, http.StatusOK, struct{}{})
	return nil
}

func (s *Server) whoami(c *call) error {
	if c.who.user == "" {
		if c.who.garbage {
			return badToken()
		}
		return &refusal{status: http.StatusUnauthorized, message: "Invalid username or password."}
	}
	writeJSON(c.w, http.StatusOK, map[string]any{
		"type": "user", "id": repoID(c.who.user), "name": c.who.user, "fullname": c.who.user, "isPro": false, "orgs": []string{},
		"auth": map[string]any{
			"type": "access_token", "accessToken": map[string]string{"displayName": "token", "role": "read", "createdAt": time.Time{}.Format(timeFormat)},
		},
	})
	return nil
}

// index tells a person who opens the URL what is here.
func (s *Server) index(c *call) error {
	var text strings.Builder
	text.WriteString("A Hub with these models; use it with HF_ENDPOINT set to this URL:\n")
	names := s.Names()
	if d, ok := s.cfg.Find.(interface{ Names() ([]string, error) }); ok {
		more, err := d.Names()
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	for _, name := range names {
		if !s.cfg.Policies[name].Private {
			text.WriteString(name + "\n")
		}
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(c.w, text.String())
	return nil
}
