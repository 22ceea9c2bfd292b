package hub

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// object is what a signed URL points to.
type object struct {
	repo Repo
	file *File
	etag string
}

// grant is the policy that a signed URL carries, in the form that CloudFront gave it.
type grant struct {
	Statement [1]statement
}

type statement struct {
	Resource  string
	Condition struct {
		DateLessThan struct {
			EpochTime int64 `json:"AWS:EpochTime"`
		}
	}
}

// cdnBase64 is the alphabet of policies and signatures.
var cdnBase64 = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-~").WithPadding('_')

// sign returns the URL on the CDN at which the file can be had for a while, by anybody.
func (s *Server) sign(r *http.Request, repo Repo, f *File, sum [32]byte) (string, error) {
	// Not the sha256: the CDN knows content by a hash of its own, and so is its ETag.
	id := sha256.Sum256(append([]byte("content "), sum[:]...))
	path := fmt.Sprintf("/xet-bridge-us/%s/%x", repoID(repo.Name()), id)
	query := "X-Xet-Cas-Uid=public&response-content-disposition=" + url.QueryEscape(disposition(f.Path))
	return s.signed(r, path, query, object{repo: repo, file: f, etag: fmt.Sprintf(`"%x"`, id)})
}

// signed puts an object at a path of the CDN and returns the URL that opens it for a while.
func (s *Server) signed(r *http.Request, path, query string, o object) (string, error) {
	base, err := s.cdnBase(r)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.objects[path] = o
	s.mu.Unlock()
	var p grant
	p.Statement[0].Resource = path + "?" + query
	expires := s.cfg.Now().Add(s.cfg.Signed).Unix()
	p.Statement[0].Condition.DateLessThan.EpochTime = expires
	raw, err := json.Marshal(p)
	if err != nil {
		panic("hub: a policy that JSON cannot hold: " + err.Error())
	}
	return fmt.Sprintf("%s%s?%s&Expires=%d&Policy=%s&Signature=%s&Key-Pair-Id=HUB", base, path, query, expires,
		cdnBase64.EncodeToString(raw), cdnBase64.EncodeToString(s.mac(raw))), nil
}

func (s *Server) mac(raw []byte) []byte {
	m := hmac.New(sha256.New, s.key)
	m.Write(raw)
	return m.Sum(nil)
}

// cdnBase returns scheme and host of the CDN for the client of r.
func (s *Server) cdnBase(r *http.Request) (string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return hostBase(r, s.cdn, "CDN")
}

// casBase returns scheme and host of the CAS for the client of r.
func (s *Server) casBase(r *http.Request) (string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return hostBase(r, s.cas, "CAS")
}

func hostBase(r *http.Request, base, what string) (string, error) {
	if base == "" {
		return "", fmt.Errorf("this Hub was not told where its %s is", what)
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("URL of the %s: %w", what, err)
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "" || ip.IsUnspecified() {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		u.Host = net.JoinHostPort(host, u.Port())
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// serveCDN sends an object to whoever brings a URL that was signed here and is still good.
func (s *Server) serveCDN(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Authorization") != "":
		// The signature is one authentication; a second one is refused (and was leaked by its sender).
		refuseCDN(w, http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed")
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		refuseCDN(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "The method is not allowed")
		return
	}
	if reason := s.checkSignature(r.URL); reason != "" {
		refuseCDN(w, http.StatusForbidden, "AccessDenied", reason)
		return
	}
	if want := r.URL.Query().Get(signedRange); want != "" && r.Header.Get("Range") != want {
		refuseCDN(w, http.StatusForbidden, "AccessDenied", "The Range is not the one that was signed")
		return
	}
	s.mu.RLock()
	o, ok := s.objects[r.URL.Path]
	s.mu.RUnlock()
	if !ok {
		refuseCDN(w, http.StatusNotFound, "NoSuchKey", "The key does not exist")
		return
	}
	h := w.Header()
	h.Set("Content-Disposition", r.URL.Query().Get("response-content-disposition"))
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "public, max-age=31536000")
	if err := s.send(w, r, o.repo, o.file, o.etag); err != nil {
		s.cfg.Log.Error("request failed", "path", r.URL.Path, "err", err)
		refuseCDN(w, http.StatusInternalServerError, "InternalError", err.Error())
	}
}

// checkSignature returns why a URL is not good, or "".
func (s *Server) checkSignature(u *url.URL) string {
	signed, _, _ := strings.Cut(u.RawQuery, "&Expires=")
	query := u.Query()
	raw, err := cdnBase64.DecodeString(query.Get("Policy"))
	if err != nil || len(raw) == 0 {
		return "Missing Policy"
	}
	mac, err := cdnBase64.DecodeString(query.Get("Signature"))
	if err != nil || !hmac.Equal(mac, s.mac(raw)) {
		return "Access denied"
	}
	var p grant
	if json.Unmarshal(raw, &p) != nil {
		return "Malformed Policy"
	}
	expires := p.Statement[0].Condition.DateLessThan.EpochTime
	switch {
	case p.Statement[0].Resource != u.Path+"?"+signed, query.Get("Expires") != fmt.Sprint(expires):
		return "Access denied"
	case !s.cfg.Now().Before(time.Unix(expires, 0)):
		return "Request has expired"
	}
	return ""
}

func refuseCDN(w http.ResponseWriter, status int, code, message string) {
	body := fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>\n", code, oneLine(message))
	w.Header().Del("Content-Disposition")
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	w.Write([]byte(body))
}
