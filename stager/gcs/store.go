// Package gcs is the writing side of a Cloud Storage bucket.
//
// A file that goes up in parts is a set of objects below .headstart/parts, composed at most 32 at a time
// into the final one, whose CRC32C the service compares with ours before it makes the object visible.
// (The client's own resumable uploads cannot be continued by another process.) Every write carries a
// precondition; one that was applied and whose answer got lost fails it when it is repeated, so a
// failed precondition is followed by a look at what is there.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	htransport "google.golang.org/api/transport/http"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Config says which bucket is meant.
type Config struct {
	Bucket   string
	Prefix   string // "" or ending in "/"
	Emulator string // host:port or URL of an emulator (STORAGE_EMULATOR_HOST); no credentials are used then
	Log      *slog.Logger

	Stall    time.Duration                             // a connection on which nothing moves for so long is closed; 0 is a minute
	Attempts int                                       // of each request; 0 is 8
	Wait     time.Duration                             // before the second attempt, doubling up to 16 times that; 0 is 1 s
	Wrap     func(http.RoundTripper) http.RoundTripper // optional; around every request, for tests and counters
	Dial     Dial                                      // optional; instead of the system's, for tests

	Retrying func(stager.Retry) // optional; is told of every request that is made again, must return at once
}

// Store is a bucket.
type Store struct {
	Config
	client *storage.Client
	bucket *storage.BucketHandle
	http   *http.Client // the client's
	xml    *url.URL     // of the service
	fan    int          // sources of one compose at most

	undeletable atomic.Bool // the bucket does not let go of parts
}

// New makes a client. It looks for credentials, and does not touch the bucket.
func New(ctx context.Context, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Attempts == 0 {
		c.Attempts = 8
	}
	if c.Wait == 0 {
		c.Wait = time.Second
	}
	if c.Stall == 0 {
		c.Stall = time.Minute
	}
	service, err := c.service()
	if err != nil {
		return nil, err
	}
	transport, options, err := c.transport(ctx, service)
	if err != nil {
		return nil, stager.Fail(fs.ErrPermission, "bucket gs://%s: no usable Google credentials (%v): run gcloud auth application-default login, or give the pod a service account by Workload Identity", c.Bucket, oneLine(err))
	}
	hc := &http.Client{
		Transport: checked{bounded{transport}},
		// Cloud Storage answers by itself, and the transport would show the token to whatever host comes next.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client, err := storage.NewClient(ctx, append(options, option.WithHTTPClient(hc))...)
	if err != nil {
		return nil, fmt.Errorf("bucket gs://%s: %w", c.Bucket, err)
	}
	// Every write has a precondition or is harmless to repeat.
	s := &Store{Config: c, client: client, http: hc, xml: service, fan: 32}
	client.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(c.Attempts), storage.WithErrorFuncWithContext(s.again),
		storage.WithBackoff(gax.Backoff{Initial: c.Wait, Max: 16 * c.Wait, Multiplier: 2}))
	s.bucket = client.Bucket(c.Bucket) // it has the policy from here on
	return s, nil
}

// service returns the URL of Cloud Storage, or of what stands in for it.
func (c Config) service() (*url.URL, error) {
	address := c.Emulator
	switch {
	case address == "":
		address = "https://storage.googleapis.com"
	case !strings.Contains(address, "://"):
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%.100q is not the address of a bucket service: set STORAGE_EMULATOR_HOST to HOST:PORT or http://HOST:PORT", c.Emulator)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// transport returns pooled connections that speak HTTP/1.1: in HTTP/2 all parts would share one.
func (c Config) transport(ctx context.Context, service *url.URL) (http.RoundTripper, []option.ClientOption, error) {
	wrap := c.Wrap
	if wrap == nil {
		wrap = func(t http.RoundTripper) http.RoundTripper { return t }
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	base := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dial(c.Dial, c.Stall),
		Protocols:              protocols,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if c.Emulator != "" {
		return wrap(base), []option.ClientOption{option.WithoutAuthentication(), option.WithEndpoint(service.String() + "/storage/v1/")}, nil
	}
	authorized, err := htransport.NewTransport(ctx, wrap(base), option.WithScopes(storage.ScopeReadWrite))
	return authorized, nil, err
}

// Close releases the connections.
func (s *Store) Close() error { return s.client.Close() }

func (s *Store) String() string {
	return "gs://" + s.Bucket + strings.TrimSuffix("/"+s.Prefix, "/")
}

// KeyPrefix is what stands in front of every key in the object's name.
func (s *Store) KeyPrefix() string { return s.Prefix }

func (s *Store) object(key string) *storage.ObjectHandle {
	return s.bucket.Object(s.Prefix + key)
}

// Get returns a small object's content and generation.
func (s *Store) Get(ctx context.Context, key string, limit int64) ([]byte, int64, error) {
	r, err := s.object(key).NewReader(ctx)
	if err != nil {
		return nil, 0, s.explain(key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, 0, s.explain(key, err)
	}
	if int64(len(data)) > limit {
		return nil, 0, stager.Fail(manifest.ErrInvalid, "%s/%s has more than %d bytes", s, key, limit)
	}
	return data, r.Attrs.Generation, nil
}

// Open reads a range of an object. The client goes on by itself after a lost connection.
func (s *Store) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := s.object(key).NewRangeReader(ctx, off, n)
	if err != nil {
		return nil, s.explain(key, err)
	}
	return r, nil
}

// Put writes an object in one request, if the one that is there has the given generation.
func (s *Store) Put(ctx context.Context, key string, generation int64, data ...[]byte) error {
	p := stager.Part{}
	for _, b := range data {
		p.CRC32C = crc32.Update(p.CRC32C, manifest.Castagnoli, b)
		p.Size += int64(len(b))
	}
	for range races {
		if _, err := s.write(ctx, key, generation, p, data); err == nil || !failedPrecondition(err) {
			return s.explain(key, err)
		}
		attrs, err := s.object(key).Attrs(ctx)
		if errors.Is(err, storage.ErrObjectNotExist) && generation == 0 {
			continue // somebody has removed it between the two calls
		}
		if err != nil && !errors.Is(err, storage.ErrObjectNotExist) {
			return s.explain(key, err)
		}
		if err == nil && attrs.Size == p.Size && attrs.CRC32C == p.CRC32C {
			return nil
		}
		break
	}
	return s.occupied(key)
}

// races is how often a write is tried again after somebody came between it and the look at what is there.
const races = 10

func (s *Store) occupied(key string) error {
	return stager.Fail(fs.ErrExist, "%s/%s is there with other content and is left untouched: remove it, or use another prefix", s, key)
}

func (s *Store) replaced(key string) error {
	return stager.Fail(fs.ErrExist, "%s/%s was replaced by another process and is left untouched", s, key)
}

// write sends an object from memory and repeats that as long as it makes sense.
func (s *Store) write(ctx context.Context, key string, generation int64, p stager.Part, data [][]byte) (int64, error) {
	wait := gax.Backoff{Initial: s.Wait, Max: 16 * s.Wait, Multiplier: 2}
	for attempt := 1; ; attempt++ {
		made, err := s.put(ctx, key, generation, p, data)
		if err == nil || attempt == s.Attempts || !storage.ShouldRetry(err) {
			return made, err
		}
		s.Log.Debug("sending again", "object", key, "attempt", attempt, "err", err)
		pause := wait.Pause()
		s.retrying(err, pause)
		if err := gax.Sleep(ctx, pause); err != nil {
			return 0, context.Cause(ctx)
		}
	}
}

// List iterates over the objects below prefix.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[stager.Object, error] {
	return func(yield func(stager.Object, error) bool) {
		for attrs, err := range s.attrs(ctx, prefix, "Name", "Size", "CRC32C", "Created", "Generation") {
			if err != nil {
				yield(stager.Object{}, err)
				return
			}
			o := stager.Object{Key: strings.TrimPrefix(attrs.Name, s.Prefix), Size: attrs.Size, CRC32C: attrs.CRC32C, Summed: true,
				Created: attrs.Created, Version: attrs.Generation}
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (s *Store) attrs(ctx context.Context, prefix string, fields ...string) iter.Seq2[*storage.ObjectAttrs, error] {
	return func(yield func(*storage.ObjectAttrs, error) bool) {
		query := &storage.Query{Prefix: s.Prefix + prefix}
		if err := query.SetAttrSelection(fields); err != nil {
			yield(nil, err)
			return
		}
		for it := s.bucket.Objects(ctx, query); ; {
			attrs, err := it.Next()
			if errors.Is(err, iterator.Done) {
				return
			}
			if err == nil && attrs == nil { // {"items":[null]}
				err = errors.New("the listing has an entry that is no object")
			}
			if !yield(attrs, s.explain(prefix, err)) || err != nil {
				return
			}
		}
	}
}

// Delete removes an object.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := s.object(key).Delete(ctx)
	if errors.Is(err, storage.ErrObjectNotExist) {
		return nil
	}
	return s.explain(key, err)
}

func failedPrecondition(err error) bool {
	var api *googleapi.Error
	return errors.As(err, &api) && api.Code == http.StatusPreconditionFailed
}

// explain says what a person can do about an error of the service.
func (s *Store) explain(key string, err error) error {
	var api *googleapi.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, storage.ErrBucketNotExist):
		return stager.Fail(fs.ErrNotExist, "bucket gs://%s does not exist: create it, or correct its name", s.Bucket)
	case errors.Is(err, storage.ErrObjectNotExist):
		return stager.Fail(fs.ErrNotExist, "%s/%s does not exist", s, key)
	case !errors.As(err, &api):
		return fmt.Errorf("%s/%s: %w", s, key, err)
	case s.refused(key, api) != nil:
		return s.refused(key, api)
	case api.Code == http.StatusNotFound:
		return stager.Fail(fs.ErrNotExist, "bucket gs://%s does not exist, or %s was removed meanwhile", s.Bucket, key)
	case api.Code == http.StatusUnauthorized:
		return stager.Fail(fs.ErrPermission, "bucket gs://%s: the credentials are not valid (%s): run gcloud auth application-default login, or check Workload Identity", s.Bucket, oneLine(api))
	case api.Code == http.StatusForbidden:
		return stager.Fail(fs.ErrPermission, "bucket gs://%s: access to %q is denied (%s): grant this account roles/storage.objectUser on the bucket", s.Bucket, key, oneLine(api))
	}
	return stager.Fail(api, "%s/%s: the service answers with %s", s, key, oneLine(api))
}

// oneLine bounds what a server says.
func oneLine(err error) string {
	text := err.Error()
	var api *googleapi.Error
	if errors.As(err, &api) {
		message := api.Message
		if _, rest, ok := strings.Cut(api.Body, "<Message>"); ok && message == "" { // the XML API's, which reads go to
			message, _, _ = strings.Cut(rest, "</Message>")
		}
		text = fmt.Sprintf("status %d %s", api.Code, message)
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}
