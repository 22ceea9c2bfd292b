package hf

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// location is where a file's bytes are at present. A signed URL lives for an hour; it is kept in memory
// only.
type location struct {
	asking chan struct{} // held by the one who asks for it
	place  *place        // nil: not known
}

// place is one of two: a URL, or a name in the content-addressed store.
type place struct {
	url *url.URL
	xet *pointer
}

type locations struct {
	mu sync.Mutex
	of map[string]*location // by model and path
}

func (l *locations) at(key string) *location {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = make(map[string]*location)
	}
	if l.of[key] == nil {
		l.of[key] = &location{asking: make(chan struct{}, 1)}
	}
	return l.of[key]
}

// locate returns where the file's bytes are. It asks the Hub once for all ranges of a file.
func (s *Source) locate(ctx context.Context, m manifest.Model, f stager.RemoteFile) (*place, error) {
	l := s.locations.at(m.Object(f.Path))
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-l.asking }()
	if l.place == nil {
		p, err := s.resolve(ctx, m, f)
		if err != nil {
			return nil, err
		}
		l.place = p
	}
	return l.place, nil
}

// forget drops a location that turned out to be stale.
func (s *Source) forget(ctx context.Context, m manifest.Model, f stager.RemoteFile, stale *place) {
	l := s.locations.at(m.Object(f.Path))
	select {
	case l.asking <- struct{}{}:
		if l.place == stale {
			l.place = nil
		}
		<-l.asking
	case <-ctx.Done():
	}
}

// resolve asks the Hub for a file, and compares what it says with what its listing said.
func (s *Source) resolve(ctx context.Context, m manifest.Model, f stager.RemoteFile) (*place, error) {
	at := ask{repo: m.Repo, revision: m.Commit, path: f.Path}
	r, data, err := s.call(ctx, http.MethodHead, s.Endpoint+"/"+m.Repo+"/resolve/"+m.Commit+"/"+escapePath(f.Path), at)
	if err != nil {
		return nil, err
	}
	if r.StatusCode >= 400 {
		return nil, s.refused(r, data, at)
	}
	switch commit := r.Header.Get("X-Repo-Commit"); commit {
	case m.Commit:
	case "":
		return nil, stager.Fail(manifest.ErrInvalid, "%s answers about %s without naming a commit: it is no Hub: check HF_ENDPOINT and proxies", s.Endpoint, f.Path)
	default:
		return nil, unlike(m, f.Path, commit)
	}
	if err := compare(r, f); err != nil {
		return nil, err
	}
	if x, err := s.throughXet(r, m, f); x != nil || err != nil {
		return &place{xet: x}, err
	}
	if r.StatusCode < 300 {
		return &place{url: r.Request.URL}, nil
	}
	u, err := r.Request.URL.Parse(r.Header.Get("Location"))
	if err != nil {
		return nil, stager.Fail(manifest.ErrInvalid, "%s: the Hub redirects to something that is not a URL", f.Path)
	}
	return &place{url: u}, s.mayFollow(r.Request.URL, u, f)
}

// compare reports where the answer contradicts the listing.
func compare(r *http.Response, f stager.RemoteFile) error {
	if size := r.Header.Get("X-Linked-Size"); size != "" && size != strconv.FormatInt(f.Size, 10) {
		return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "size", Want: strconv.FormatInt(f.Size, 10), Got: clip(size, 40)}
	}
	etag := strings.Trim(strings.TrimPrefix(r.Header.Get("X-Linked-Etag"), "W/"), `"`)
	want, sum := f.GitSHA1, "git sha1"
	if f.SHA256 != nil {
		want, sum = f.SHA256.String(), "sha256"
	}
	if etag != "" && etag != want {
		return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: sum, Want: want, Got: clip(etag, 80)}
	}
	return nil
}

// mayFollow refuses a redirect that gives up the connection's protection.
func (s *Source) mayFollow(from, to *url.URL, f stager.RemoteFile) error {
	switch {
	case to.Scheme != "https" && to.Scheme != "http", to.Host == "":
		return stager.Fail(manifest.ErrInvalid, "%s: the Hub redirects to something that is not a web address", f.Path)
	case from.Scheme == "https" && to.Scheme != "https":
		return stager.Fail(manifest.ErrInvalid, "%s: %s redirects from https to http", f.Path, from.Host)
	}
	return nil
}

func escapePath(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return strings.Join(segments, "/")
}

// lost is an error that another try may mend.
type lost struct {
	error
	response *http.Response // that asks to wait, or nil
	stale    bool           // the location is no longer good
}

func (l *lost) Unwrap() error { return l.error }

func lose(format string, args ...any) error { return &lost{error: fmt.Errorf(format, args...)} }
