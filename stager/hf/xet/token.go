package xet

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Token opens a store for a while.
type Token struct {
	Access  string // a secret
	Expires time.Time
	CAS     *url.URL // the store
}

// ParseToken reads the Hub's answer to xet-read-token: its headers, as huggingface_hub 2.4.0 does, or where one is
// missing its JSON, as hf_xet 1.8.0 does.
func ParseToken(h http.Header, body []byte) (Token, error) {
	access, exp, cas := h.Get("X-Xet-Access-Token"), h.Get("X-Xet-Token-Expiration"), h.Get("X-Xet-Cas-Url")
	if access == "" || exp == "" || cas == "" {
		var doc struct {
			Access string      `json:"accessToken"`
			Exp    json.Number `json:"exp"`
			CAS    string      `json:"casUrl"`
		}
		if err := json.Unmarshal(body, &doc); err != nil {
			return Token{}, malformed("the Hub's answer to xet-read-token is neither in its headers nor JSON")
		}
		access, exp, cas = doc.Access, doc.Exp.String(), doc.CAS
	}
	if access == "" || strings.ContainsFunc(access, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return Token{}, malformed("the Hub's answer to xet-read-token has no access token that can stand in a header")
	}
	seconds, err := strconv.ParseInt(exp, 10, 64)
	if err != nil || seconds < 0 {
		return Token{}, malformed("the Hub's answer to xet-read-token expires at %.40q, which is no time", exp)
	}
	u, err := url.Parse(cas)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http" {
		return Token{}, malformed("the Hub's answer to xet-read-token names no store at a web address")
	}
	return Token{Access: access, Expires: time.Unix(seconds, 0), CAS: u}, nil
}
