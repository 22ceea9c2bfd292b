package fetchtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// Memory is a source in memory. Its fields are set before it is used; [Memory.Replace] is for later.
type Memory struct {
	Objects map[string][]byte

	// Fault, if set, is asked about each Open; it may wait. nil is no fault.
	Fault func(ctx context.Context, r Request) *Fault

	mu        sync.Mutex
	requests  []Request
	attempts  map[Request]int // by request with no Attempt
	refreshes int
}

// Request is one Open.
type Request struct {
	Key     string
	Off, N  int64
	Attempt int // how many times this range was asked for, from 1
}

// Fault says how an Open goes wrong. After bytes, or at once:
type Fault struct {
	After int64
	Err   error         // Open returns it if After is 0, else the body does
	Stall bool          // the body gives nothing until ctx ends
	Flip  bool          // the byte at After is another one
	Short bool          // the body ends as if the object did
	Pause time.Duration // before each read of the body
	Step  int           // at most so many bytes a read
}

// Requests returns what was opened, in order.
func (s *Memory) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Replace changes an object while the source is used, and returns what was there; nil removes it.
func (s *Memory) Replace(key string, data []byte) (old []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.Objects[key]
	if data == nil {
		delete(s.Objects, key)
	} else {
		s.Objects[key] = data
	}
	return old
}

// Refreshes returns how often the engine asked for new connections.
func (s *Memory) Refreshes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refreshes
}

// Refresh implements [fetch.Refresher].
func (s *Memory) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refreshes++
}

// Open implements [fetch.Source].
func (s *Memory) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	if s.attempts == nil {
		s.attempts = make(map[Request]int)
	}
	r := Request{Key: key, Off: off, N: n}
	s.attempts[r]++
	r.Attempt = s.attempts[r]
	s.requests = append(s.requests, r)
	object, ok := s.Objects[key]
	s.mu.Unlock()
	var fault *Fault
	if s.Fault != nil {
		fault = s.Fault(ctx, r)
	}
	if err := ctx.Err(); err != nil {
		return nil, ctx.Err()
	}
	if fault == nil {
		fault = &Fault{}
	}
	if fault.Err != nil && fault.After == 0 {
		return nil, fault.Err
	}
	if !ok {
		return nil, fetch.Fail(fs.ErrNotExist, "no object %s", key)
	}
	object = object[min(off, int64(len(object))):]
	return &body{ctx: ctx, rest: object[:min(n, int64(len(object)))], fault: *fault}, nil
}

type body struct {
	ctx   context.Context
	rest  []byte
	at    int64
	fault Fault
}

func (b *body) Read(p []byte) (int, error) {
	if b.fault.Pause > 0 {
		t := time.NewTimer(b.fault.Pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-b.ctx.Done():
		}
	}
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err()
	}
	if b.fault.Step > 0 {
		p = p[:min(len(p), b.fault.Step)]
	}
	if left := b.fault.After - b.at; b.bad() && left > 0 {
		p = p[:min(int64(len(p)), left)]
	} else if b.bad() {
		switch {
		case b.fault.Stall:
			<-b.ctx.Done()
			return 0, b.ctx.Err()
		case b.fault.Short:
			return 0, io.EOF
		}
		return 0, b.fault.Err
	}
	n := copy(p, b.rest)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	if i := b.fault.After - b.at; b.fault.Flip && 0 <= i && i < int64(n) {
		p[i] ^= 1
	}
	b.rest = b.rest[n:]
	b.at += int64(n)
	return n, nil
}

// bad reports whether the body ends early.
func (b *body) bad() bool { return b.fault.Stall || b.fault.Short || b.fault.Err != nil }

func (b *body) Close() error { return nil }

// Get implements [fetch.Source].
func (s *Memory) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.Objects[key]
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !ok:
		return nil, fetch.Fail(fs.ErrNotExist, "no object %s", key)
	case int64(len(b)) > limit:
		return nil, fetch.Fail(manifest.ErrInvalid, "%s is longer than %d bytes", key, limit)
	}
	return slices.Clone(b), nil
}

// List implements [fetch.Source].
func (s *Memory) List(ctx context.Context, prefix string) iter.Seq2[fetch.Object, error] {
	return func(yield func(fetch.Object, error) bool) {
		s.mu.Lock()
		objects := maps.Clone(s.Objects)
		s.mu.Unlock()
		for _, key := range slices.Sorted(maps.Keys(objects)) {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			if ctx.Err() != nil {
				yield(fetch.Object{}, context.Cause(ctx))
				return
			}
			if !yield(fetch.Object{Key: key, Size: int64(len(objects[key]))}, nil) {
				return
			}
		}
	}
}

// ErrReset is what a connection that is cut gives.
var ErrReset = errors.New("read: connection reset by peer")

// Status returns an answer that is not the object.
func Status(code int) error { return fmt.Errorf("object x: %w", &fetch.StatusError{Code: code}) }
