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
	Method string // of HTTP, or of the gRPC service
	Path   string // as it came, escaped
	Query  string // over gRPC generation=N where a generation is named
	Range  string // the Range or Content-Range header, or what it would be over HTTP
	Status int    // 0: not answered yet, or cut off by a fault before the status; what gRPC answers has HTTP's number
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
	l.add(q)
	// The status is noted before the client can see it, so that a test that has its answer finds it.
	rec.note = func(status int) { l.update(func() { q.Status = status }) }
	return func() { l.update(func() { q.Sent = rec.sent }) }
}

func (l *requestLog) add(q *Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == maxRequests {
		l.list = slices.Clone(l.list[maxRequests/2:])
	}
	l.list = append(l.list, q)
}

// update runs f, which changes a request of the log, while nobody reads it.
func (l *requestLog) update(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
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
