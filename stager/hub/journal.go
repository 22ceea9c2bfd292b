package hub

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is one request that the server got.
type Request struct {
	Host   string // "api" or "cdn"
	Method string
	Path   string // as it was sent, escapes included
	Query  string
	Range  string // the header
	Token  bool   // it carried an Authorization header; on the CDN a mistake
	Status int    // of the answer; 0 as long as there is none and when the connection was reset
}

// journalSize bounds what a server that runs for days remembers.
const journalSize = 1 << 16

type journal struct {
	mu       sync.Mutex
	first    int // number of the first request kept
	requests []Request
}

// Requests returns the requests since the start or the last [Server.ResetRequests], in the order of
// their arrival, at most the last 32,768 to 65,536 of them. A request whose answer a client has seen has its status.
func (s *Server) Requests() []Request {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return slices.Clone(s.journal.requests)
}

// ResetRequests forgets the requests so far.
func (s *Server) ResetRequests() {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	s.journal.first += len(s.journal.requests)
	s.journal.requests = nil
}

func (j *journal) add(r Request) (number int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.requests) == journalSize {
		j.requests = slices.Clone(j.requests[journalSize/2:])
		j.first += journalSize / 2
	}
	j.requests = append(j.requests, r)
	return j.first + len(j.requests) - 1
}

func (j *journal) answer(number, status int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i := number - j.first; i >= 0 {
		j.requests[i].Status = status
	}
}

// record notes every request of a host and its answer.
func (s *Server) record(host string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.cfg.Now()
		a := &answer{ResponseWriter: w, journal: &s.journal}
		a.number = s.journal.add(Request{
			Host: host, Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
			Range: r.Header.Get("Range"), Token: r.Header.Get("Authorization") != "",
		})
		// The query stays out of the log: a signed URL is a key.
		defer func() {
			s.cfg.Log.Debug("answered", "host", host, "method", r.Method, "path", r.URL.Path, "range", r.Header.Get("Range"),
				"status", a.status, "bytes", a.bytes, "elapsed", s.cfg.Now().Sub(start).Round(time.Microsecond))
		}()
		s.withFaults(a, r, next)
	})
}

// answer is a response writer that remembers.
type answer struct {
	http.ResponseWriter
	journal *journal
	number  int
	status  int
	bytes   int64
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
		a.journal.answer(a.number, status)
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// ReadFrom keeps the kernel's way from a file to a socket open.
func (a *answer) ReadFrom(src io.Reader) (int64, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	n, err := io.Copy(a.ResponseWriter, src)
	a.bytes += n
	return n, err
}

// Flush implements http.Flusher.
func (a *answer) Flush() {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	http.NewResponseController(a.ResponseWriter).Flush()
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
