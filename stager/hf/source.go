// Package hf is the Hugging Face Hub as a source: revisions, listings, files.
//
// Calls of the Hub's API go through go-retryablehttp, which waits as the Hub's rate-limit headers say.
// Bytes go over plain connections, HTTP/1.1, with redirects followed by hand: the token is sent to the
// Hub's own origin and to no other. A reader that loses its connection, or meets a signed URL that has
// expired, goes on from the byte it had reached. What the Hub says is checked against what it said
// before; what it sends is checked by the stager.
//
// Bytes come from the CDN, in ranges over plain HTTP. A file that is not to be had there comes from the
// content-addressed store: package xet.
package hf

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf/xet"
)

// Config says which Hub is meant. FromEnv reads it from where the Hub's own client does.
type Config struct {
	Endpoint  string // URL; "" is https://huggingface.co
	Token     string // "" for none
	UserAgent string
	Log       *slog.Logger

	Stall   time.Duration                             // a body that sends nothing for so long is cut; 0 is 30 s
	Lag     time.Duration                             // a body that lags far behind the others is not cut before that; 0 is 2 s
	Tries   int                                       // again after an error, without progress; 0 is 5
	Wait    time.Duration                             // before the second try, doubling up to 8 times that; 0 is 1 s
	Wrap    func(http.RoundTripper) http.RoundTripper // optional; around every request, for tests and counters
	Patient time.Duration                             // the longest wait that a rate limit may ask for; 0 is 10 minutes
	Dial    Dial                                      // optional; instead of the system's, for tests

	DisableXet bool  // a file that is to be had through Xet alone is then an error
	XetAbove   int64 // bytes; larger files go through Xet where the Hub offers it; 0 is 50·10⁹

	Retrying func(stager.Retry) // optional; is told of every request that is made again, must return at once
}

// Dial makes a connection, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Source is a Hub. It is safe for concurrent use.
type Source struct {
	Config
	base      *url.URL
	api       *retryablehttp.Client
	bulk      http.RoundTripper
	locations locations
	xet       *xet.Client
	tokens    tokens
	described described
	pace      pace

	stalled, behind atomic.Int64 // connections that were cut
}

// New returns a source. It makes no request.
func New(c Config) (*Source, error) {
	if c.Endpoint == "" {
		c.Endpoint = "https://huggingface.co"
	}
	c.Endpoint = strings.TrimRight(c.Endpoint, "/")
	base, err := url.Parse(c.Endpoint)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("the Hub's endpoint%s is not a URL of the form https://HOST: set HF_ENDPOINT to one", shown(base))
	}
	if err := checkToken(c.Token); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.UserAgent == "" {
		c.UserAgent = "headstart"
	}
	if c.Tries == 0 {
		c.Tries = 5
	}
	if c.XetAbove == 0 {
		c.XetAbove = maxPlain
	}
	for d, or := range map[*time.Duration]time.Duration{&c.Stall: 30 * time.Second, &c.Lag: 2 * time.Second, &c.Wait: time.Second, &c.Patient: 10 * time.Minute} {
		if *d == 0 {
			*d = or
		}
	}
	s := &Source{Config: c, base: base, bulk: transport(c.Dial), pace: pace{shortest: c.Lag, longest: c.Stall}}
	if c.Wrap != nil {
		s.bulk = c.Wrap(s.bulk)
	}
	s.api = s.client()
	s.xet = xet.New(s.bulk, c.UserAgent)
	return s, nil
}

// shown is what may be printed of an endpoint that is refused. It may hold a password, anywhere if it is
// not the URL it was meant to be.
func shown(u *url.URL) string {
	switch {
	case u == nil || u.Host == "":
		return ""
	case u.User != nil:
		return fmt.Sprintf(" at %q has a user name, and", clip(u.Host, 100))
	}
	return fmt.Sprintf(" %q", clip(u.Scheme+"://"+u.Host, 100))
}

// transport keeps a connection for each stream. In HTTP/2 all of them would share one.
func transport(dial Dial) http.RoundTripper {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		Protocols:           protocols,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		// Headers are bounded: 1 MiB is net/http's default, too.
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// Close releases idle connections.
func (s *Source) Close() error {
	s.api.HTTPClient.CloseIdleConnections()
	return nil
}

// Resolve asks what commit a revision is. A revision that is a commit needs no request.
func (s *Source) Resolve(ctx context.Context, repo, revision string) (stager.Snapshot, error) {
	if err := manifest.ValidRepo(repo); err != nil {
		return stager.Snapshot{}, err
	}
	if revision == "" {
		revision = "main"
	}
	if err := manifest.ValidRevision(revision); err != nil {
		return stager.Snapshot{}, err
	}
	if len(revision) == 40 && manifest.IsCommit(revision) {
		return stager.Snapshot{Model: manifest.Model{Repo: repo, Commit: revision}}, nil
	}
	var info struct {
		SHA      string    `json:"sha"`
		Disabled bool      `json:"disabled"`
		Siblings []sibling `json:"siblings"`
	}
	at := ask{repo: repo, revision: revision}
	if _, err := s.getJSON(ctx, s.Endpoint+"/api/models/"+repo+"/revision/"+url.PathEscape(revision), at, &info); err != nil {
		return stager.Snapshot{}, err
	}
	if info.Disabled {
		return stager.Snapshot{}, s.disabled(at)
	}
	if len(info.SHA) != 40 || !manifest.IsCommit(info.SHA) {
		return stager.Snapshot{}, stager.Fail(manifest.ErrInvalid, "%s names no commit for %s at %q: is it a Hub?", s.Endpoint, repo, revision)
	}
	m := manifest.Model{Repo: repo, Commit: info.SHA}
	s.described.keep(m, info.Siblings)
	return stager.Snapshot{Model: m, Ref: revision}, nil
}

// Open reads a range of a file.
func (s *Source) Open(ctx context.Context, m manifest.Model, f stager.RemoteFile, off, n int64) (io.ReadCloser, error) {
	return &body{source: s, ctx: ctx, model: m, file: f, at: off, end: off + n, large: n >= progress}, nil
}

// own reports whether u is of the Hub's origin, where the token may go.
func (s *Source) own(u *url.URL) bool {
	return u.Scheme == s.base.Scheme && strings.EqualFold(u.Hostname(), s.base.Hostname()) && port(u) == port(s.base)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// authorize adds what every request has, and the token where it belongs.
func (s *Source) authorize(r *http.Request) {
	r.Header.Set("User-Agent", s.UserAgent)
	r.Header.Set("Accept-Encoding", "identity")
	if s.Token != "" && s.own(r.URL) {
		r.Header.Set("Authorization", "Bearer "+s.Token)
	}
}
