package hf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

const (
	// progress is how many bytes make a try count as one that went well: fewer, and a server that
	// drops every connection early would be asked for ever.
	progress = 1 << 20
	// maxSkip is how many bytes are thrown away where a server answers a range with the whole file.
	maxSkip = 32 << 20
	// maxCuts is how often a reader changes its connection because others are faster: after that it may
	// be the bytes that are slow to get, and not the connection.
	maxCuts = 3
)

// body reads a range of a file over as many connections as it takes.
type body struct {
	source *Source
	ctx    context.Context
	model  manifest.Model
	file   stager.RemoteFile
	at     int64
	end    int64
	large  bool // enough bytes to tell a rate

	stream *stream // nil: not connected
	tries  int     // without progress
	since  int64   // bytes since the last failure
	cuts   int     // connections that were slower than others
}

func (b *body) Read(p []byte) (int, error) {
	for {
		if b.at == b.end {
			return 0, io.EOF
		}
		n, err := b.try(p[:min(int64(len(p)), b.end-b.at)])
		b.at += int64(n)
		if b.since += int64(n); b.since >= progress {
			b.tries = 0
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// try reads what comes, connecting first where that is needed. Without a byte it returns an error.
func (b *body) try(p []byte) (int, error) {
	if b.stream == nil {
		s, err := b.source.open(b.ctx, b.model, b.file, b.at, b.end, b.large && b.cuts < maxCuts)
		if err != nil {
			return 0, err
		}
		b.stream = s
	}
	n, err := b.stream.Read(p)
	if n > 0 {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.Close()
	if errors.As(err, new(*lost)) || errors.As(err, new(*manifest.MismatchError)) {
		return 0, err
	}
	return 0, &lost{error: err}
}

// again waits before the next try, or returns the error that ends it.
func (b *body) again(err error) error {
	var l *lost
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if !errors.As(err, &l) {
		return err
	}
	if errors.Is(err, errBehind) { // no failure: it is tried at once, and as often as maxCuts says
		b.cuts++
		b.source.behind.Add(1)
		b.source.Log.Debug("reading on over another connection", "path", b.file.Path, "at", b.at, "cuts", b.cuts)
		return nil
	}
	if errors.Is(err, errStalled) {
		b.source.stalled.Add(1)
	}
	if b.tries == b.source.Tries {
		return fmt.Errorf("%s: no byte after %d of %d arrives (%d tries): %w", b.file.Path, b.at, b.file.Size, b.tries+1, err)
	}
	wait := b.source.delay(b.tries, l.response)
	if b.since >= progress || l.stale && b.tries == 0 {
		wait = 0 // it went well so far: only the connection is gone
	}
	b.tries++
	b.since = 0
	b.source.Log.Debug("reading on", "path", b.file.Path, "at", b.at, "try", b.tries, "wait", wait, "err", err)
	b.source.retrying(l.response, wait, err)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

func (b *body) Close() error {
	if b.stream == nil {
		return nil
	}
	err := b.stream.Close()
	b.stream = nil
	return err
}

// open connects for the bytes from at to end. The stream is watched until it is closed; judged says whether
// it is also compared with the others.
func (s *Source) open(ctx context.Context, m manifest.Model, f stager.RemoteFile, at, end int64, judged bool) (*stream, error) {
	p, err := s.locate(ctx, m, f)
	if err != nil {
		return nil, err
	}
	if p.xet != nil {
		return s.openXet(ctx, m, f, p.xet, at, end, judged)
	}
	own, cancel := context.WithCancelCause(ctx)
	guard := s.watch(judged, cancel)
	r, err := s.get(own, p.url, m, f, at, end)
	if err == nil {
		err = s.check(r, m, f, at, end)
	}
	if err != nil {
		if own.Err() != nil && ctx.Err() == nil {
			err = &lost{error: context.Cause(own)}
		}
		if r != nil {
			r.Body.Close()
		}
		guard.stop()
		cancel(nil)
		var l *lost
		if errors.As(err, &l) && l.stale {
			s.forget(ctx, m, f, p)
		}
		return nil, err
	}
	st := &stream{ReadCloser: r.Body, ctx: own, cancel: cancel, guard: guard}
	if r.StatusCode == http.StatusOK && at > 0 {
		if _, err := io.CopyN(io.Discard, st, at); err != nil {
			st.Close()
			return nil, &lost{error: err}
		}
	}
	return st, nil
}

// get asks for a range and follows redirects by hand.
func (s *Source) get(ctx context.Context, u *url.URL, m manifest.Model, f stager.RemoteFile, at, end int64) (*http.Response, error) {
	for range 6 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, stager.Fail(manifest.ErrInvalid, "%s: the Hub redirects to something that is not a URL", f.Path)
		}
		s.authorize(request)
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, end-1))
		r, err := s.bulk.RoundTrip(request)
		if err != nil {
			return nil, lose("%s: %w", u.Host, bare(err))
		}
		switch r.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return r, nil
		}
		r.Body.Close()
		next, err := u.Parse(r.Header.Get("Location"))
		if err != nil {
			return nil, stager.Fail(manifest.ErrInvalid, "%s: the Hub redirects to something that is not a URL", f.Path)
		}
		if commit := r.Header.Get("X-Repo-Commit"); s.own(u) && commit != "" && commit != m.Commit {
			return nil, unlike(m, f.Path, commit)
		}
		if err := s.mayFollow(u, next, f); err != nil {
			return nil, err
		}
		u = next
	}
	return nil, stager.Fail(manifest.ErrInvalid, "%s: redirects without end", f.Path)
}

var contentRange = regexp.MustCompile(`^bytes (\d{1,19})-(\d{1,19})/(\d{1,19})$`)

// check reports whether the answer is the range, or the file, that was asked for.
func (s *Source) check(r *http.Response, m manifest.Model, f stager.RemoteFile, at, end int64) error {
	host := r.Request.URL.Host
	size := func(got string) error {
		return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "size", Want: strconv.FormatInt(f.Size, 10), Got: clip(got, 40)}
	}
	if commit := r.Header.Get("X-Repo-Commit"); s.own(r.Request.URL) && commit != "" && commit != m.Commit {
		return unlike(m, f.Path, commit)
	}
	switch {
	case r.StatusCode == http.StatusPartialContent:
		got := contentRange.FindStringSubmatch(r.Header.Get("Content-Range"))
		if got == nil || got[1] != strconv.FormatInt(at, 10) {
			return lose("%s answers with another range (%q)", host, clip(r.Header.Get("Content-Range"), 60))
		}
		if got[3] != strconv.FormatInt(f.Size, 10) {
			return size(got[3])
		}
	case r.StatusCode == http.StatusOK:
		if strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") && !strings.HasSuffix(f.Path, ".html") {
			return lose("%s answers with a page for people: check HF_ENDPOINT and proxies", host)
		}
		if r.ContentLength >= 0 && r.ContentLength != f.Size {
			return size(strconv.FormatInt(r.ContentLength, 10))
		}
		if at > maxSkip {
			return lose("%s answers a range with the whole file: it, or a proxy before it, knows no ranges", host)
		}
	case r.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return size(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes */"))
	case transient(r.StatusCode):
		return &lost{error: fmt.Errorf("%s answers with status %d", host, r.StatusCode), response: r}
	case r.StatusCode >= 400 && r.StatusCode < 500: // a signed URL that has expired, or access that is gone
		return &lost{error: fmt.Errorf("%s answers with status %d", host, r.StatusCode), stale: true}
	default:
		return fmt.Errorf("%s: %s answers with status %d", f.Path, host, r.StatusCode)
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return lose("%s answers with Content-Encoding %q, which was not asked for", host, clip(encoding, 40))
	}
	return nil
}
