package hub

import (
	"net/http"
	"slices"
	"strings"
)

// caller is who sent a request.
type caller struct {
	user    string // "" for nobody
	garbage bool   // a token came that is nobody's
}

func (s *Server) caller(r *http.Request) caller {
	header := r.Header.Get("Authorization")
	if header == "" {
		return caller{}
	}
	token, ok := strings.CutPrefix(header, "Bearer ")
	if ok && token != "" && len(s.cfg.Tokens) == 0 {
		return caller{user: "user"}
	}
	user, known := s.cfg.Tokens[token]
	if !ok || !known {
		return caller{garbage: true}
	}
	return caller{user: user}
}

// admit decides whether who may see an existing repository and, with files, have its files. The
// order is the Hub's: what hides the repository, what concerns all of it, then its files.
func (s *Server) admit(r *http.Request, who caller, name string, files bool) error {
	policy := s.cfg.Policies[name]
	granted := who.user != "" && slices.Contains(policy.Granted, who.user)
	restricted := policy.Gated != "" && files
	switch {
	case policy.Private && !granted:
		return missing(r, who)
	case policy.Limited:
		return limited()
	case policy.Disabled:
		return disabled()
	case restricted && !granted:
		return gated(name, who)
	case who.garbage:
		return badToken()
	}
	return nil
}
