package hf

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf/xet"
)

// maxPlain is the size in bytes above which the Hub has files in Xet alone (huggingface_hub 2.4.0,
// MAX_HTTP_DOWNLOAD_SIZE). Below it plain ranges are what is used: Xet was nowhere faster, takes a plan and often two
// answers where plain HTTP takes one, and more of the processor where chunks are packed.
const maxPlain = 50_000_000_000

// pointer is what a file is called in the content-addressed store, and where the Hub gives tokens for it.
type pointer struct {
	hash  string
	route string // of the Hub's own origin
}

// throughXet returns where the file is in the store if it has to come from there, and nil if it need not. An answer
// without a redirect and without the file's length is that of a Hub that has no other way.
func (s *Source) throughXet(r *http.Response, m manifest.Model, f stager.RemoteFile) (*pointer, error) {
	hash := r.Header.Get("X-Xet-Hash")
	bridged := r.StatusCode >= 300 || r.ContentLength == f.Size
	if hash == "" || f.SHA256 == nil || bridged && f.Size <= s.XetAbove {
		return nil, nil
	}
	if s.DisableXet {
		return nil, stager.Fail(errors.ErrUnsupported, "%s of %d bytes is to be had through Xet alone: unset HF_HUB_DISABLE_XET", f.Path, f.Size)
	}
	route := authRoute(r.Header)
	if !xet.ValidHash(hash) || route == "" {
		return nil, stager.Fail(manifest.ErrInvalid, "%s: %s names no place of the file in Xet (%.80q)", f.Path, s.Endpoint, clip(hash, 80))
	}
	// What huggingface_hub does, for mirrors that pass on the Hub's headers.
	if rest, ok := strings.CutPrefix(route, "https://huggingface.co/"); ok {
		route = s.Endpoint + "/" + rest
	}
	u, err := url.Parse(route)
	if err != nil || !s.own(u) {
		return nil, stager.Fail(manifest.ErrInvalid, "%s: %s sends for a token to another host, which it does not get: check HF_ENDPOINT", f.Path, s.Endpoint)
	}
	return &pointer{hash: hash, route: u.String()}, nil
}

var authLink = regexp.MustCompile(`<([^<>]+)>\s*;\s*rel="?xet-auth"?`)

// authRoute returns where the Hub gives tokens for the store, "" where it does not say.
func authRoute(h http.Header) string {
	for _, l := range h.Values("Link") {
		if found := authLink.FindStringSubmatch(l); found != nil {
			return found[1]
		}
	}
	return h.Get("X-Xet-Refresh-Route")
}

// tokens are the store's, in memory only.
type tokens struct {
	mu sync.Mutex
	of map[string]*slot // by route
}

type slot struct {
	asking chan struct{} // held by the one who asks for it
	token  *xet.Token    // nil: not known
	until  time.Time     // when to ask for another; zero: when it is refused
}

func (t *tokens) at(route string) *slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = make(map[string]*slot)
	}
	if t.of[route] == nil {
		t.of[route] = &slot{asking: make(chan struct{}, 1)}
	}
	return t.of[route]
}

// tokenMargin is how long before its end a token is replaced, as huggingface_hub does.
const tokenMargin = time.Minute

// xetToken returns a token for the store, one for all files of a commit. It asks for another before the old one
// ends; where that has happened already, this machine's clock is wrong, and a refusal will tell.
func (s *Source) xetToken(ctx context.Context, m manifest.Model, f stager.RemoteFile, route string) (*xet.Token, error) {
	l := s.tokens.at(route)
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-l.asking }()
	now := time.Now()
	if l.token != nil && (l.until.IsZero() || now.Before(l.until)) {
		return l.token, nil
	}
	at := ask{repo: m.Repo, revision: m.Commit, path: f.Path}
	r, data, err := s.call(ctx, http.MethodGet, route, at)
	if err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK {
		return nil, s.refused(r, data, at)
	}
	t, err := xet.ParseToken(r.Header, data)
	if err != nil {
		return nil, stager.Fail(manifest.ErrInvalid, "%s: %v: check HF_ENDPOINT and proxies", f.Path, err)
	}
	if s.base.Scheme == "https" && t.CAS.Scheme != "https" {
		return nil, stager.Fail(manifest.ErrInvalid, "%s: %s leads from https to http", f.Path, s.Endpoint)
	}
	l.token, l.until = &t, t.Expires.Add(-tokenMargin)
	if !l.until.After(now) {
		l.until = time.Time{}
	}
	return l.token, nil
}

// forgetToken drops a token that was refused.
func (s *Source) forgetToken(ctx context.Context, route string, refused *xet.Token) {
	l := s.tokens.at(route)
	select {
	case l.asking <- struct{}{}:
		if l.token == refused {
			l.token = nil
		}
		<-l.asking
	case <-ctx.Done():
	}
}

// openXet is open for a file that is in the store. What it returns fails like any other stream, and is opened anew at
// the byte that was reached: with a new plan, hence with new URLs.
func (s *Source) openXet(ctx context.Context, m manifest.Model, f stager.RemoteFile, x *pointer, at, end int64, judged bool) (*stream, error) {
	t, err := s.xetToken(ctx, m, f, x.route)
	if err != nil {
		return nil, err
	}
	own, cancel := context.WithCancelCause(ctx)
	guard := s.watch(judged, cancel)
	explain := func(err error) error { return s.explainXet(ctx, f, x, t, err) }
	r, err := s.xet.Open(own, *t, x.hash, at, end-at, func() { guard.came(0) })
	if err != nil {
		if own.Err() != nil && ctx.Err() == nil {
			err = context.Cause(own)
		}
		guard.stop()
		cancel(nil)
		return nil, explain(err)
	}
	return &stream{ReadCloser: &xetBody{r, explain}, ctx: own, cancel: cancel, guard: guard}, nil
}

// xetBody says what its errors mean.
type xetBody struct {
	io.ReadCloser
	explain func(error) error
}

func (b *xetBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = b.explain(err)
	}
	return n, err
}

// explainXet says whether another try may mend an error, after how long, and with what token.
func (s *Source) explainXet(ctx context.Context, f stager.RemoteFile, x *pointer, t *xet.Token, err error) error {
	var status *xet.StatusError
	if !errors.As(err, &status) {
		return &lost{error: err}
	}
	code := status.Response.StatusCode
	switch {
	case transient(code):
		return &lost{error: err, response: status.Response}
	case status.Store && code == http.StatusRequestedRangeNotSatisfiable:
		return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "size", Want: strconv.FormatInt(f.Size, 10), Got: "less in Xet"}
	case status.Store && (code == http.StatusUnauthorized || code == http.StatusForbidden):
		s.forgetToken(ctx, x.route, t)
	}
	return &lost{error: err, stale: true}
}
