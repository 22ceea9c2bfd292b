package hf

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// refused turns an answer that is no success into what a person can do about it. The order of the cases
// is that of huggingface_hub's hf_raise_for_status.
func (s *Source) refused(r *http.Response, data []byte, at ask) error {
	code, message := r.Header.Get("X-Error-Code"), says(r, data)
	switch {
	case code == "RevisionNotFound":
		return stager.Fail(fs.ErrNotExist, "repository %s has no revision %q: give a branch, a tag or a commit that %s/%s/commits lists", at.repo, at.revision, s.Endpoint, at.repo)
	case code == "EntryNotFound":
		return stager.Fail(fs.ErrNotExist, "repository %s has no file %q at %s, though it lists it", at.repo, at.path, at.revision)
	case code == "GatedRepo":
		return s.gated(r, at)
	case message == "Access to this resource is disabled.":
		return s.disabled(at)
	case strings.HasPrefix(message, "Invalid credentials"):
		return stager.Fail(fs.ErrPermission, "the Hub does not know this token: make one at %s/settings/tokens and set HF_TOKEN", s.Endpoint)
	case code == "RepoNotFound", r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusNotFound:
		return s.missing(r, at)
	case r.StatusCode == http.StatusForbidden:
		return stager.Fail(fs.ErrPermission, "the Hub denies access to %s (%s): give HF_TOKEN a token that may read it", at.repo, message)
	case r.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("the Hub's rate limit is used up%s: wait, or set HF_TOKEN: a token has a higher one", until(r))
	}
	return fmt.Errorf("the Hub at %s answers about %s with status %d (%s)", s.Endpoint, at.repo, r.StatusCode, message)
}

// gated tells three cases: the Hub answers 401 to nobody and to a token that it does not know.
func (s *Source) gated(r *http.Response, at ask) error {
	page := s.Endpoint + "/" + at.repo
	switch {
	case s.Token != "" && r.StatusCode == http.StatusUnauthorized:
		return stager.Fail(fs.ErrPermission, "repository %s is gated and the Hub does not know this token: open %s and accept the licence, make a token at %s/settings/tokens and set HF_TOKEN to it", at.repo, page, s.Endpoint)
	case s.Token == "":
		return stager.Fail(fs.ErrPermission, "repository %s is gated: open %s and accept the licence, then set HF_TOKEN", at.repo, page)
	}
	return stager.Fail(fs.ErrPermission, "repository %s is gated and this token's user is not on its list: open %s and accept the licence (and let the token read gated repositories), or set another HF_TOKEN", at.repo, page)
}

func (s *Source) disabled(at ask) error {
	return stager.Fail(fs.ErrPermission, "repository %s is disabled by the Hub: see %s/%s for the reason", at.repo, s.Endpoint, at.repo)
}

func (s *Source) missing(r *http.Response, at ask) error {
	switch {
	case r.StatusCode == http.StatusUnauthorized && s.Token != "":
		return stager.Fail(fs.ErrNotExist, "repository %s does not exist at %s, or this token may not see it: check the name and HF_TOKEN", at.repo, s.Endpoint)
	case s.Token == "":
		return stager.Fail(fs.ErrNotExist, "repository %s does not exist at %s, or is private: check the name, or set HF_TOKEN", at.repo, s.Endpoint)
	}
	return stager.Fail(fs.ErrNotExist, "repository %s does not exist at %s, or is private and this token may not see it: check the name", at.repo, s.Endpoint)
}

func until(r *http.Response) string {
	if t, ok := limited(r); ok {
		return fmt.Sprintf(" for %d s more", t)
	}
	return ""
}

// says returns what the Hub says of an error: its header, or the body's "error".
func says(r *http.Response, data []byte) string {
	if m := r.Header.Get("X-Error-Message"); m != "" {
		return clip(m, 200)
	}
	var doc struct {
		Error any `json:"error"`
	}
	if json.Unmarshal(data, &doc) == nil && doc.Error != nil {
		return clip(fmt.Sprint(doc.Error), 200)
	}
	return "no message"
}

// clip makes one short printable line of what a server sent.
func clip(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// unlike is a commit that was not asked for.
func unlike(m manifest.Model, path, got string) error {
	return stager.Fail(manifest.ErrInvalid, "%s: the Hub sends it from commit %.50q, not from %s", path, got, m.Commit)
}
