// Package gcs reads a bucket of Cloud Storage by ranges, over HTTP or gRPC.
//
// Over HTTP the Go client's reader hands a large Read on to the connection, so bytes go from the socket
// straight into the caller's slice; over gRPC they are copied out of messages. What the client would try
// again by itself it must not: an attempt here is one request, and the engine decides about the next one
// (see attempt). A read pins the object's generation that the first answer named. The caller checks what
// comes: ranged answers over HTTP carry no checksum.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	htransport "google.golang.org/api/transport/http"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// Source is a bucket, or what is below a prefix of it. It implements [fetch.Source].
type Source struct {
	client   *storage.Client
	conns    *http.Transport // nil over gRPC
	overGRPC bool
	bucket   *storage.BucketHandle
	name     string
	prefix   string // "" or with a slash at its end

	mu          sync.Mutex
	generations map[string]int64 // by key: what the first answer named
}

// New returns the source gs://bucket/prefix, read over HTTP. With STORAGE_EMULATOR_HOST set it reads from there and
// sends no credentials, otherwise it uses the application default ones.
func New(ctx context.Context, bucket, prefix string) (*Source, error) {
	conns := transport()
	var hop http.RoundTripper = conns
	if os.Getenv("STORAGE_EMULATOR_HOST") == "" {
		authorized, err := htransport.NewTransport(ctx, conns, option.WithScopes(storage.ScopeReadOnly))
		if err != nil {
			return nil, fetch.Fail(fs.ErrPermission, "no credentials for gs://%s (%v): run gcloud auth application-default login, or use a service account", bucket, err)
		}
		hop = authorized
	}
	hc := &http.Client{
		Transport: attempts{hop},
		// Cloud Storage does not redirect reads, and nobody else shall see the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client, err := storage.NewClient(ctx, option.WithHTTPClient(hc), storage.WithDisabledClientMetrics())
	if err != nil {
		return nil, fmt.Errorf("a client for gs://%s: %w", bucket, err)
	}
	client.SetRetry(storage.WithPolicy(storage.RetryNever))
	s := newSource(client, bucket, prefix)
	s.conns = conns
	return s, nil
}

func newSource(client *storage.Client, bucket, prefix string) *Source {
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return &Source{client: client, bucket: client.Bucket(bucket), name: bucket, prefix: prefix, generations: make(map[string]int64)}
}

// transport returns connections for bulk: HTTP/1.1, so that each stream has a connection and a window
// of its own, and idle ones kept for as many streams as an engine may have.
func transport() *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // a range is a range of the stored bytes
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// Close gives the connections back.
func (s *Source) Close() error {
	err := s.client.Close()
	s.Refresh()
	return err
}

// Refresh implements [fetch.Refresher]: the next requests use new connections. Over gRPC they use the others
// of its channels, whose turn it is anyway.
func (s *Source) Refresh() {
	if s.conns != nil {
		s.conns.CloseIdleConnections()
	}
}

func (s *Source) String() string {
	return "gs://" + strings.TrimSuffix(s.name+"/"+s.prefix, "/")
}

// Open implements [fetch.Source].
func (s *Source) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	obj := s.bucket.Object(s.prefix + key)
	pinned := s.pinned(key)
	if pinned != 0 {
		obj = obj.Generation(pinned)
	}
	ctx = withAttempt(ctx)
	r, body, err := s.newReader(ctx, obj, off, n, storage.WithDisableReaderChecksum())
	switch {
	case err != nil && pinned != 0 && errors.Is(err, storage.ErrObjectNotExist):
		// It was replaced or deleted. The next attempt looks which; other bytes will not pass the check.
		s.unpin(key, pinned)
		return nil, fmt.Errorf("%s in %s: generation %d is gone", key, s, pinned)
	case err != nil:
		return nil, s.explain(ctx, key, err)
	}
	if r.Attrs.StartOffset != off {
		body.Close()
		return nil, fmt.Errorf("%s in %s: asked for bytes from %d, got them from %d", key, s, off, r.Attrs.StartOffset)
	}
	if err := s.pin(key, r.Attrs.Generation); err != nil {
		body.Close()
		return nil, err
	}
	return body, nil
}

// newReader begins to read an object: body has the bytes, r what is known about them.
func (s *Source) newReader(ctx context.Context, obj *storage.ObjectHandle, off, n int64, options ...storage.ReaderOption) (r *storage.Reader, body io.ReadCloser, err error) {
	if s.overGRPC {
		return s.newStream(ctx, obj, off, n, options...)
	}
	r, err = obj.NewRangeReader(ctx, off, n, options...)
	return r, r, err
}

func (s *Source) pinned(key string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generations[key]
}

// pin keeps the first generation that an answer names. An answer of another one is an error.
func (s *Source) pin(key string, generation int64) error {
	if generation <= 0 {
		return nil // a server without generations
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch old := s.generations[key]; old {
	case generation:
		return nil
	case 0:
		s.generations[key] = generation
		return nil
	default:
		return fmt.Errorf("%s in %s: asked for generation %d, got %d", key, s, old, generation)
	}
}

func (s *Source) unpin(key string, generation int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generations[key] == generation {
		delete(s.generations, key)
	}
}

// Get implements [fetch.Source].
func (s *Source) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, body, err := s.newReader(withAttempt(ctx), s.bucket.Object(s.prefix+key), 0, -1)
	if errors.Is(err, storage.ErrObjectNotExist) {
		return nil, s.missing(ctx, key)
	}
	if err != nil {
		return nil, s.explain(ctx, key, err)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", key, s, err)
	}
	if int64(len(b)) > limit {
		return nil, fetch.Fail(manifest.ErrInvalid, "%s in %s is longer than %d bytes", key, s, limit)
	}
	return b, nil
}

// missing finds out what a 404 meant: a reader of objects sees the same one for a missing bucket.
func (s *Source) missing(ctx context.Context, key string) error {
	for _, err := range s.List(ctx, key) {
		var lost *bucketError
		if errors.As(err, &lost) {
			return lost
		}
		break
	}
	return fetch.Fail(fs.ErrNotExist, "no object %s in %s", key, s)
}

// List implements [fetch.Source].
func (s *Source) List(ctx context.Context, prefix string) iter.Seq2[fetch.Object, error] {
	return func(yield func(fetch.Object, error) bool) {
		q := &storage.Query{Prefix: s.prefix + prefix, Projection: storage.ProjectionNoACL}
		if err := q.SetAttrSelection([]string{"Name", "Size"}); err != nil {
			yield(fetch.Object{}, fmt.Errorf("listing %s: %w", s, err))
			return
		}
		// One page after the other is one request after the other: a few attempts are right here.
		// A handle of its own: Retryer changes what handles made from the same one share.
		bucket := s.client.Bucket(s.name).Retryer(storage.WithPolicy(storage.RetryIdempotent), storage.WithMaxAttempts(4), storage.WithErrorFunc(storage.ShouldRetry))
		for it := bucket.Objects(ctx, q); ; {
			attrs, err := it.Next()
			if err == iterator.Done {
				return
			}
			if err != nil {
				yield(fetch.Object{}, s.explainList(ctx, err))
				return
			}
			key, ok := strings.CutPrefix(attrs.Name, s.prefix)
			if !ok {
				yield(fetch.Object{}, fetch.Fail(manifest.ErrInvalid, "listing %s: the answer names %.100q, which is not below it", s, attrs.Name))
				return
			}
			if !yield(fetch.Object{Key: key, Size: attrs.Size}, nil) {
				return
			}
		}
	}
}
