package gcs

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// attempt is the one request that a read may make.
//
// The client's reader, when a body breaks, asks for the rest by itself, again and again, and its error
// is the second request's. An attempt refuses the second request with the reason why the first one
// broke: the engine sees that reason, counts it, and decides.
type attempt struct {
	mu    sync.Mutex
	used  bool
	broke error
}

type attemptKey struct{}

func withAttempt(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, new(attempt))
}

// attempts is the transport that enforces them, and bounds what the body of an error or of a listing
// may cost.
type attempts struct{ next http.RoundTripper }

const (
	maxErrorBody = 64 << 10
	maxPage      = 16 << 20 // of a listing: a thousand names of at most 1 KiB, and what JSON adds
)

// RoundTrip implements [http.RoundTripper].
func (t attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	a, _ := r.Context().Value(attemptKey{}).(*attempt)
	if a != nil {
		if err := a.begin(); err != nil {
			return nil, err
		}
	}
	res, err := t.next.RoundTrip(r)
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode >= 300:
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxErrorBody), res.Body}
	case a != nil:
		res.Body = &watched{res.Body, a}
	default:
		res.Body = http.MaxBytesReader(nil, res.Body, maxPage)
	}
	return res, nil
}

var errSecond = errors.New("one request for each read")

func (a *attempt) begin() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broke != nil {
		return a.broke
	}
	if a.used {
		return errSecond
	}
	a.used = true
	return nil
}

// watched is a body that notes why it broke.
type watched struct {
	io.ReadCloser
	attempt *attempt
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.attempt.mu.Lock()
		b.attempt.broke = err
		b.attempt.mu.Unlock()
	}
	return n, err
}
