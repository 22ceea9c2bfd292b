package hub

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// call is one request to the API and what its path says.
type call struct {
	w    http.ResponseWriter
	r    *http.Request
	who  caller
	name string   // of the repository
	rest []string // what follows the name: segments, unescaped
}

func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Request-Id", "Root=1-"+rand.Text())
	who := s.caller(r)
	var err error
	if s.quotas.count(w, r.URL.Path, client(r, who), s.cfg.Now()) {
		err = s.route(w, r, who)
	} else {
		err = limited()
	}
	if err == nil || r.Context().Err() != nil {
		return
	}
	var e *refusal
	if !errors.As(err, &e) {
		s.cfg.Log.Error("request failed", "path", r.URL.Path, "err", err)
		e = &refusal{status: http.StatusInternalServerError, message: err.Error()}
	}
	if e.status == http.StatusTooManyRequests {
		s.quotas.exhausted(w, r.URL.Path, s.cfg.Now())
	}
	e.write(w)
}

// client returns whom a request is counted for.
func client(r *http.Request, who caller) string {
	if who.user != "" {
		return "user " + who.user
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// route finds the handler. It works on the escaped path, because a revision or a file's directory
// may be one segment with slashes in it: /tree/refs%2Fpr%2F1.
func (s *Server) route(w http.ResponseWriter, r *http.Request, who caller) error {
	segments, err := split(r.URL.EscapedPath())
	if err != nil {
		return malformed("%v", err)
	}
	c := &call{w: w, r: r, who: who}
	post := r.Method == http.MethodPost
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !post {
		return &refusal{status: http.StatusMethodNotAllowed, message: "Method not allowed"}
	}
	switch {
	case len(segments) > 2 && segments[0] == "api" && segments[1] == "models":
		c.name, c.rest = splitName(segments[2:], "revision", "tree", "paths-info", "refs", "auth-check", "xet-read-token")
		return s.model(c, post)
	case post:
		return &refusal{status: http.StatusMethodNotAllowed, message: "Method not allowed"}
	case slices.Equal(segments, []string{"api", "whoami-v2"}):
		return s.whoami(c)
	case len(segments) > 4 && segments[0] == "api" && segments[1] == "resolve-cache" && segments[2] == "models":
		return s.resolveCache(c, segments[3:])
	case segments[0] != "api":
		c.name, c.rest = splitName(segments, "resolve")
		if len(c.rest) >= 3 && c.rest[0] == "resolve" {
			return s.resolve(c)
		}
	}
	if r.URL.Path == "/" {
		return s.index(c)
	}
	return &refusal{status: http.StatusNotFound, message: "Sorry, we can't find the page you are looking for."}
}

// model serves what stands below /api/models/{name}.
func (s *Server) model(c *call, post bool) error {
	verb := ""
	if len(c.rest) > 0 {
		verb = c.rest[0]
	}
	if post != (verb == "paths-info") {
		return &refusal{status: http.StatusMethodNotAllowed, message: "Method not allowed"}
	}
	switch {
	case len(c.rest) == 0:
		return s.info(c, "main")
	case verb == "revision" && len(c.rest) == 2:
		return s.info(c, c.rest[1])
	case verb == "tree" && len(c.rest) >= 2:
		return s.tree(c, c.rest[1], strings.Join(c.rest[2:], "/"))
	case verb == "paths-info" && len(c.rest) == 2:
		return s.pathsInfo(c, c.rest[1])
	case verb == "refs" && len(c.rest) == 1:
		return s.refs(c)
	case verb == "xet-read-token" && len(c.rest) == 2 && s.cfg.Xet != nil:
		return s.xetToken(c, c.rest[1])
	case verb == "auth-check":
		return s.authCheck(c)
	}
	return &refusal{status: http.StatusNotFound, message: "Sorry, we can't find the page you are looking for."}
}

// repo returns the repository of the call if the caller may see it and, with files, have its files.
// A name that is written with other letter cases is redirected, with done true.
func (s *Server) repo(c *call, files bool) (h *history, done bool, err error) {
	h, err = s.find(c.r.Context(), c.name)
	if err != nil {
		return nil, false, fmt.Errorf("repository %s: %w", c.name, err)
	}
	if h != nil {
		return h, false, s.admit(c.r, c.who, c.name, files)
	}
	if name := s.canonical(c.name); name != "" {
		to := strings.Replace(c.r.URL.EscapedPath(), "/"+c.name, "/"+name, 1)
		if c.r.URL.RawQuery != "" {
			to += "?" + c.r.URL.RawQuery
		}
		redirect(c.w, http.StatusTemporaryRedirect, to)
		return nil, true, nil
	}
	return nil, false, missing(c.r, c.who)
}

// at is repo, and its state at a revision.
func (s *Server) at(c *call, rev string, files bool) (r Repo, done bool, err error) {
	h, done, err := s.repo(c, files)
	if err != nil || done {
		return nil, done, err
	}
	if r = h.at(rev); r == nil {
		return nil, false, badRevision(rev)
	}
	return r, false, nil
}

// redirect answers with a Location as it stands: relative ones stay relative.
func redirect(w http.ResponseWriter, status int, location string) {
	body := http.StatusText(status) + ". Redirecting to " + location
	w.Header().Set("Location", location)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	w.Write([]byte(body))
}

// split returns the unescaped segments of an escaped path.
func split(path string) ([]string, error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, raw := range segments {
		s, err := url.PathUnescape(raw)
		if err != nil {
			return nil, err
		}
		segments[i] = s
	}
	return segments, nil
}

// splitName divides segments into the name of a repository and the rest, which is empty or begins
// with one of verbs. Before a verb a name has one segment (a legacy model) or two.
func splitName(segments []string, verbs ...string) (name string, rest []string) {
	n := 2
	if len(segments) == 1 || slices.Contains(verbs, segments[1]) {
		n = 1
	}
	return strings.Join(segments[:n], "/"), segments[n:]
}

// isCommit reports whether s is 40 lower-case hex digits.
func isCommit(s string) bool {
	return len(s) == 40 && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}
