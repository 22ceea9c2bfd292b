package bucket

import (
	"net/http"
	"slices"
	"sync"
)

// maxRequests bounds the request log; the oldest half goes when it is full.
const maxRequests = 1 << 16

// Request is one line of the request log.
type Request struct {
	Op     string // such as storage.objects.get; "" if the request is none that the server knows
	Bucket string
	Object string // unescaped
	Method string
	Path   string // as it came, escaped
	Query  string
	Range  string // the Range or Content-Range header
	Status int    // 0: not answered yet, or cut off by a fault before the status
	Sent   int64  // bytes of the answer's body
}

type requestLog struct {
	mu   sync.Mutex
	list []*Request
}

// begin notes a request; its end notes the answer.
func (l *requestLog) begin(r *http.Request, rt route, rec *recorder) (end func()) {
	q := &Request{
		Op: rt.op, Bucket: rt.bucket, Object: rt.object,
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Range: r.Header.Get("Range"),
	}
	if q.Range == "" {
		q.Range = r.Header.Get("Content-Range")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == maxRequests {
		l.list = slices.Clone(l.list[maxRequests/2:])
	}
	l.list = append(l.list, q)
	// The status is noted before the client can see it, so that a test that has its answer finds it.
	rec.note = func(status int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		q.Status = status
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		q.Sent = rec.sent
	}
}

// Requests returns what was asked since the start or the last ResetRequests, in order of arrival;
// at least the last 32,768.
func (s *Server) Requests() []Request {
	s.requests.mu.Lock()
	defer s.requests.mu.Unlock()
	list := make([]Request, len(s.requests.list))
	for i, q := range s.requests.list {
		list[i] = *q
	}
	return list
}

// ResetRequests empties the request log.
func (s *Server) ResetRequests() {
	s.requests.mu.Lock()
	defer s.requests.mu.Unlock()
	s.requests.list = nil
}
