// Package xet reads files from the Hub's content-addressed store, where a file is a list of terms: runs of chunks of
// xorbs, each packed for itself. It is the download side of huggingface/xet-core (af1a3ff9) and of its specification
// in huggingface/hub-docs (docs/xet).
//
//	token, err := xet.ParseToken(header, body)             // of the Hub's answer to xet-read-token
//	r, err := client.Open(ctx, token, hash, off, n, nil)   // asks how the range is put together
//	_, err = io.ReadFull(r, p)                             // fetches xorb after xorb, unpacks chunk after chunk
//
// A reader holds one connection, one chunk and the plan of at most 32 MiB of the file, whatever the file's size. It
// does not try again: an error says what is wrong ([StatusError], [MalformedError]), and whoever reads opens again at
// the byte that was reached, which asks for new signed URLs too. Nothing that the store says is taken on trust but
// the bytes themselves: no hash is checked, as hf_xet checks none, and the reader's user must know the file's digest.
package xet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/headstart-serving/headstart/manifest"
)

// Client reads from stores. It is safe for concurrent use.
type Client struct {
	http      http.RoundTripper
	userAgent string
	session   string
	first     atomic.Bool // the store does not know version 2 of reconstructions
	unpackers sync.Pool   // of *unpacker

	window, maxOver int64 // smaller in tests
}

// New returns a client whose requests go through t. It makes none.
func New(t http.RoundTripper, userAgent string) *Client {
	return &Client{http: t, userAgent: userAgent, session: rand.Text(), window: window, maxOver: maxOver}
}

// ValidHash reports whether s can be the name of a file: 64 lower-case hex digits.
func ValidHash(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// StatusError is an answer that is no success.
type StatusError struct {
	Host     string
	Response *http.Response // its status and headers; the body is closed
	Store    bool           // the store answered, not the host of a xorb
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answers with status %d", e.Host, e.Response.StatusCode)
}

// MalformedError is an answer that breaks the format or contradicts another. Another try may mend it: bytes are
// changed on the way, too.
type MalformedError struct{ Text string }

func (e *MalformedError) Error() string { return e.Text }
func (e *MalformedError) Unwrap() error { return manifest.ErrInvalid }

func malformed(format string, args ...any) error {
	return &MalformedError{Text: fmt.Sprintf(format, args...)}
}

// get asks u for a range of bytes, end-inclusive, and returns what is no redirect and no error.
func (c *Client) get(ctx context.Context, u *url.URL, access string, first, last int64) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, malformed("the store names something that is not a URL")
	}
	h := request.Header
	h.Set("User-Agent", c.userAgent)
	h.Set("Accept-Encoding", "identity")
	h.Set("Range", fmt.Sprintf("bytes=%d-%d", first, last))
	if access != "" {
		h.Set("Authorization", "Bearer "+access)
		h.Set("X-Xet-Session-Id", c.session)
	}
	r, err := c.http.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.Host, bare(err))
	}
	if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusPartialContent {
		_, _ = io.CopyN(io.Discard, r.Body, 4<<10) // the connection may be of use again
		r.Body.Close()
		return nil, &StatusError{Host: u.Host, Response: r, Store: access != ""}
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		r.Body.Close()
		return nil, malformed("%s answers with Content-Encoding %.40q, which was not asked for", u.Host, e)
	}
	return r, nil
}

// bare takes the URL out of an error: a signed one is a secret.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
