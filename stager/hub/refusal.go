package hub

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// refusal is an error as the Hub words it: the status, the headers that clients branch on, the text.
type refusal struct {
	status  int
	code    string // X-Error-Code
	message string // X-Error-Message and the body's "error"
	commit  string // X-Repo-Commit, where the revision was found and the file was not
}

func (e *refusal) Error() string { return e.message }

// missing is what the Hub says of a repository that does not exist, or that the caller may not know of.
func missing(r *http.Request, who caller) error {
	if who.user != "" {
		return &refusal{status: http.StatusNotFound, code: "RepoNotFound", message: "Repository not found"}
	}
	e := &refusal{status: http.StatusUnauthorized, message: "Invalid username or password."}
	if r.TLS == nil {
		// The Hub sends no code here; the Python client then recognises the case by a URL that begins
		// with https:// (huggingface_hub 2.4.0, hf_raise_for_status) and needs help where it does not.
		e.code = "RepoNotFound"
	}
	return e
}

func badToken() error {
	return &refusal{status: http.StatusUnauthorized, message: "Invalid credentials in Authorization header"}
}

func badRevision(rev string) error {
	return &refusal{status: http.StatusNotFound, code: "RevisionNotFound", message: "Invalid rev id: " + rev}
}

func noEntry(path, commit string) error {
	return &refusal{status: http.StatusNotFound, code: "EntryNotFound", message: "Entry not found: " + path, commit: commit}
}

func disabled() error {
	return &refusal{status: http.StatusForbidden, message: "Access to this resource is disabled."}
}

// gated is the answer to somebody who has not been granted a gated repository's files.
func gated(name string, who caller) error {
	if who.user == "" {
		return &refusal{status: http.StatusUnauthorized, code: "GatedRepo", message: "Access to model " + name +
			" is restricted. You must have access to it and be authenticated to access it. Please log in."}
	}
	return &refusal{status: http.StatusForbidden, code: "GatedRepo", message: "Access to model " + name +
		" is restricted and you are not in the authorized list. Visit https://huggingface.co/" + name + " to ask for access."}
}

func limited() error {
	return &refusal{status: http.StatusTooManyRequests, message: "We had to rate limit you."}
}

func malformed(format string, args ...any) error {
	return &refusal{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

// write sends the refusal.
func (e *refusal) write(w http.ResponseWriter) {
	h := w.Header()
	if e.code != "" {
		h.Set("X-Error-Code", e.code)
	}
	h.Set("X-Error-Message", oneLine(e.message))
	if e.commit != "" {
		h.Set("X-Repo-Commit", e.commit)
	}
	if e.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="Authentication required", charset="UTF-8"`)
	}
	writeJSON(w, e.status, map[string]string{"error": e.message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("hub: an answer that JSON cannot hold: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// oneLine makes text fit for a header.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 1000)]
}
