package hf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// maxJSON bounds an answer of the API in bytes: a page of 1000 entries has 300 KB, the info of a
// repository with 100,000 files 10 MB.
const maxJSON = 16 << 20

// client makes the client of the API: the one place where its calls are repeated.
func (s *Source) client() *retryablehttp.Client {
	c := retryablehttp.NewClient()
	c.Logger = nil
	c.HTTPClient = &http.Client{
		Transport: s.bulk,
		Timeout:   2 * s.Stall,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a redirect may lead to another host
		},
	}
	c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = s.Tries, s.Wait, 8*s.Wait
	c.ErrorHandler = retryablehttp.PassthroughErrorHandler
	c.CheckRetry = func(ctx context.Context, r *http.Response, err error) (bool, error) {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if err != nil {
			if errors.As(err, new(*stager.Failure)) {
				return false, err
			}
			return retryablehttp.DefaultRetryPolicy(ctx, nil, err)
		}
		return transient(r.StatusCode), nil
	}
	c.Backoff = func(_, _ time.Duration, attempt int, r *http.Response) time.Duration {
		wait := s.delay(attempt, r)
		s.retrying(r, wait, errors.New("the Hub does not answer as it should"))
		return wait
	}
	return c
}

func transient(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

var rateLimit = regexp.MustCompile(`(?:^|;)\s*([rt])=(\d{1,9})\s*(?:;|$)`)

// delay says how long to wait before the next try: what the Hub asks for, else Wait, doubling.
// The Hub counts in whole seconds, so one is added (huggingface_hub 2.4.0 does the same).
func (s *Source) delay(attempt int, r *http.Response) time.Duration {
	wait := s.Wait << min(attempt, 3)
	if r == nil {
		return wait
	}
	asked := -1
	if n, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && n >= 0 {
		asked = n
	}
	if t, ok := limited(r); ok {
		asked = t
	}
	if asked < 0 {
		return wait
	}
	wait = min(time.Duration(asked)*time.Second+time.Second, s.Patient)
	s.Log.Warn("the Hub asks to wait", "status", r.StatusCode, "wait", wait)
	return wait
}

// limited returns the seconds after which a window of the rate limit ends, where it is used up.
func limited(r *http.Response) (int, bool) {
	if r.StatusCode != http.StatusTooManyRequests {
		return 0, false
	}
	value := map[string]int{"r": -1, "t": -1}
	for rest := r.Header.Get("RateLimit"); ; {
		m := rateLimit.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		value[rest[m[2]:m[3]]], _ = strconv.Atoi(rest[m[4]:m[5]]) // the pattern bounds it
		rest = rest[m[5]:]
	}
	return value["t"], value["r"] == 0 && value["t"] >= 0
}

// ask says what a request is about, for its errors.
type ask struct {
	repo     string
	revision string
	path     string
}

// getJSON gets a document of the API.
func (s *Source) getJSON(ctx context.Context, address string, at ask, into any) (http.Header, error) {
	r, data, err := s.call(ctx, http.MethodGet, address, at)
	if err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK {
		return nil, s.refused(r, data, at)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return nil, stager.Fail(manifest.ErrInvalid, "%s answers about %s with something that is not the JSON of a Hub (%s, %.80q): check HF_ENDPOINT and proxies", s.Endpoint, at.repo, clip(r.Header.Get("Content-Type"), 40), clip(err.Error(), 80))
	}
	return r.Header, nil
}

// call makes a request of the Hub's own origin and reads the answer, which it bounds. It follows a
// redirect within the origin, which is how the Hub answers to an old name, except where the answer is
// about a file: its commit tells that.
func (s *Source) call(ctx context.Context, method, address string, at ask) (*http.Response, []byte, error) {
	for range 6 {
		r, data, err := s.once(ctx, method, address, at)
		if err != nil || r.StatusCode < 300 || r.StatusCode > 399 || r.Header.Get("X-Repo-Commit") != "" {
			return r, data, err
		}
		next, err := r.Request.URL.Parse(r.Header.Get("Location"))
		if err != nil || !s.own(next) {
			return nil, nil, stager.Fail(manifest.ErrInvalid, "%s answers about %s with a redirect to another host: check HF_ENDPOINT", s.Endpoint, at.repo)
		}
		address = next.String()
	}
	return nil, nil, stager.Fail(manifest.ErrInvalid, "%s answers about %s with redirects without end", s.Endpoint, at.repo)
}

func (s *Source) once(ctx context.Context, method, address string, at ask) (*http.Response, []byte, error) {
	request, err := retryablehttp.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, nil, err
	}
	s.authorize(request.Request)
	var data []byte
	// Read where a failure leads to another try.
	request.SetResponseHandler(func(r *http.Response) (err error) {
		data, err = io.ReadAll(io.LimitReader(r.Body, maxJSON+1))
		if err == nil && len(data) > maxJSON {
			err = stager.Fail(manifest.ErrInvalid, "%s answers about %s with more than %d bytes", s.Endpoint, at.repo, maxJSON)
		}
		return err
	})
	r, err := s.api.Do(request)
	if err != nil {
		if r != nil {
			r.Body.Close()
		}
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if errors.As(err, new(*stager.Failure)) {
			return nil, nil, err
		}
		return nil, nil, fmt.Errorf("the Hub at %s does not answer (%d tries): %w", s.Endpoint, s.Tries+1, bare(err))
	}
	defer r.Body.Close()
	if transient(r.StatusCode) { // what is left after the last try
		data, _ = io.ReadAll(io.LimitReader(r.Body, 64<<10))
	}
	return r, data, nil
}

// bare takes the URL out of an error: a signed one is a secret.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
