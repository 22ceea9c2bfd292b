package bucket

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// faultPlan decides which requests fail, and how. The names of the faults are those of Google's
// storage-testbench, so that tests written for it run here:
//
//	return-CODE                              an error answer
//	return-CODE-after-NK                     an upload: CODE when the object has N KiB; a read: cut off after N KiB
//	return-reset-connection                  RST instead of an answer
//	return-broken-stream                     the answer's body is cut off after 4 bytes
//	return-broken-stream-after-NK            … after N KiB of it
//	return-broken-stream-final-chunk-after-NB   the answer to a finished upload is cut off after N bytes
//	return-corrupted-data                    the answer's first byte is wrong
//	return-corrupted-data-with-its-crc32c    … and over gRPC its message has the checksum of the wrong bytes
//	return-short-stream                      4 bytes, and then over gRPC the end as if they were all
//	stall-always                             no byte of the body comes, until the client goes away
//	stall-at-256KiB                          … after 256 KiB
//	stall-for-Ts-after-NK                    T seconds without a byte after N KiB, then the rest
//
// An instruction comes from the first of these that has one: the request's header
// x-goog-emulator-instructions (faults at an offset spare a range that begins behind the object's
// start, as the testbench's do: a client that goes on after the break gets through), a plan made
// with POST /retry_test that the request names in x-retry-test-id, or [Server.Plan].
type faultPlan struct {
	mu    sync.Mutex
	tests map[string]*retryTest
	plan  map[string][]string // by operation; for requests that name no test
}

// Plan makes the next requests of an operation, such as storage.objects.get, meet the given faults,
// one each; "" lets one through. Metadata, XML and media reads are all storage.objects.get, and
// every request of an upload is storage.objects.insert.
func (s *Server) Plan(op string, instructions ...string) error {
	for _, text := range instructions {
		if _, err := parseFault(text); err != nil && text != "" {
			return err
		}
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	if s.faults.plan == nil {
		s.faults.plan = map[string][]string{}
	}
	s.faults.plan[op] = append(s.faults.plan[op], instructions...)
	return nil
}

// fault is one instruction.
type fault struct {
	status   int   // answer with it
	after    int64 // bytes before the fault; -1: at once
	reset    bool  // the connection
	corrupt  bool  // the first byte
	stored   bool  // it is wrong in the bucket, not on the way
	short    bool  // the end is not an error
	stalls   bool
	stall    time.Duration // negative: for ever
	final    bool          // cut the answer to a finished upload
	ofHeader bool          // came with the request itself
}

const forever = time.Duration(-1)

// parseFault reads an instruction.
func parseFault(text string) (fault, error) {
	f := fault{after: -1}
	bad := errInvalid("Unknown instruction: %s", clip(text))
	switch text {
	case "return-reset-connection":
		f.reset = true
		return f, nil
	case "return-broken-stream":
		f.after = 4
		return f, nil
	case "return-corrupted-data":
		f.corrupt = true
		return f, nil
	case "return-corrupted-data-with-its-crc32c":
		f.corrupt, f.stored = true, true
		return f, nil
	case "return-short-stream":
		f.short, f.after = true, 4
		return f, nil
	case "stall-always":
		f.stalls, f.stall, f.after = true, forever, 0
		return f, nil
	case "stall-at-256KiB":
		f.stalls, f.stall, f.after = true, forever, quantum
		return f, nil
	}
	var ok bool
	if rest, found := strings.CutPrefix(text, "return-broken-stream-final-chunk-after-"); found {
		f.final = true
		f.after, ok = parseAmount(rest, "B", 1)
	} else if rest, found := strings.CutPrefix(text, "return-broken-stream-after-"); found {
		f.after, ok = parseAmount(rest, "K", 1<<10)
	} else if rest, found := strings.CutPrefix(text, "stall-for-"); found {
		span, amount, _ := strings.Cut(rest, "-after-")
		var seconds int64
		if seconds, ok = parseAmount(span, "s", 1); ok {
			f.after, ok = parseAmount(amount, "K", 1<<10)
		}
		f.stalls, f.stall = true, time.Duration(seconds)*time.Second
	} else if rest, found := strings.CutPrefix(text, "return-"); found {
		code, amount, cut := strings.Cut(rest, "-after-")
		f.status, _ = strconv.Atoi(code)
		ok = f.status >= 300 && f.status <= 599
		if cut && ok {
			f.after, ok = parseAmount(amount, "K", 1<<10)
		}
	}
	if !ok {
		return f, bad
	}
	return f, nil
}

// parseAmount reads a number with a unit, bounded so that it cannot overflow.
func parseAmount(s, unit string, times int64) (int64, bool) {
	digits, ok := strings.CutSuffix(s, unit)
	n, err := strconv.ParseInt(digits, 10, 64)
	return n * times, ok && err == nil && n >= 0 && n <= 1<<32
}

// next returns the fault that a request meets; ok is false for none.
func (p *faultPlan) next(r *http.Request, rt route) (f fault, ok bool, err error) {
	if text := r.Header.Get("X-Goog-Emulator-Instructions"); text != "" {
		f, err = parseFault(text)
		f.ofHeader = true
		return f, err == nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	queue := p.plan
	if id := r.Header.Get("X-Retry-Test-Id"); id != "" {
		t := p.tests[id]
		if t == nil {
			return f, false, &apiError{status: http.StatusNotFound, reason: "notFound", code: "NoSuchTest", message: "No such retry test: " + clip(id)}
		}
		queue = t.Instructions
	}
	list := queue[rt.op]
	if len(list) == 0 {
		return f, false, nil
	}
	if list[0] == "" {
		queue[rt.op] = list[1:]
		return f, false, nil
	}
	if f, err = parseFault(list[0]); err != nil || !f.meets(r, rt) {
		return f, false, err
	}
	queue[rt.op] = list[1:]
	return f, true, nil
}

// meets reports whether a request gets as far as the fault is. One that does not leaves it to a
// later one.
func (f *fault) meets(r *http.Request, rt route) bool {
	uploading := rt.op == "storage.objects.insert"
	switch {
	case f.final:
		return uploading && endsUpload(r)
	case uploading && f.after > 0 && (f.status > 0 || f.stalls):
		first, last := uploadSpan(r)
		return first <= f.after && f.after <= last
	}
	return true
}

// uploadSpan returns the bytes of an object that a request brings; last is -1 for none.
func uploadSpan(r *http.Request) (first, last int64) {
	if r.URL.Query().Get("uploadType") == "resumable" && !r.URL.Query().Has("upload_id") {
		return 0, -1
	}
	span, err := uploadRange(r)
	if err != nil || span.empty {
		return 0, -1
	}
	if span.last < 0 {
		return span.first, maxObjectBytes
	}
	return span.first, span.last
}

// endsUpload reports whether a request brings an object's last byte.
func endsUpload(r *http.Request) bool {
	if r.URL.Query().Get("uploadType") == "resumable" && !r.URL.Query().Has("upload_id") {
		return false
	}
	span, err := uploadRange(r)
	return err == nil && (span.total >= 0 && (span.empty || span.last == span.total-1) || r.Header.Get("Content-Range") == "")
}

// apply answers a request through next, with the fault that it meets.
func (p *faultPlan) apply(w http.ResponseWriter, r *http.Request, rt route, next func(http.ResponseWriter, *http.Request) error) error {
	f, ok, err := p.next(r, rt)
	if err != nil {
		return err
	}
	if !ok || f.ofHeader && f.after > 0 && behindStart(r) {
		return next(w, r)
	}
	uploading := rt.op == "storage.objects.insert"
	switch {
	case f.reset:
		resetConnection(w)
		return nil
	case f.status > 0 && f.after < 0:
		return f.answer()
	case uploading && !f.final && f.after >= 0 && (f.status > 0 || f.stalls):
		first, _ := uploadSpan(r)
		r.Body = &faultBody{ReadCloser: r.Body, fault: f, left: max(f.after-first, 0), ctx: r.Context()}
		return next(w, r)
	}
	fw := &faultWriter{ResponseWriter: w, fault: f, left: f.after, ctx: r.Context()}
	err = next(fw, r)
	if fw.broken {
		panic(http.ErrAbortHandler) // the way to cut an answer off
	}
	return err
}

// behindStart reports whether a request is about bytes that do not begin at the object's start.
func behindStart(r *http.Request) bool {
	start, _, whole, err := parseRange(r.Header.Get("Range"), 1<<62)
	return r.Header.Get("Range") != "" && !whole && err == nil && start > 0
}

// answer returns an error answer, with the reason that the service gives for the most common ones.
func (f *fault) answer() error {
	reasons := map[int][2]string{
		400: {"invalid", "InvalidArgument"}, 401: {"required", "AuthenticationRequired"}, 403: {"forbidden", "AccessDenied"},
		404: {"notFound", "NoSuchKey"}, 408: {"requestTimeout", "RequestTimeout"}, 412: {"conditionNotMet", "PreconditionFailed"},
		429: {"rateLimitExceeded", "SlowDown"}, 503: {"backendError", "ServiceUnavailable"},
	}
	names, ok := reasons[f.status]
	if !ok {
		names = [2]string{"backendError", "InternalError"}
	}
	return &apiError{status: f.status, reason: names[0], code: names[1], message: "Fault injected: " + strconv.Itoa(f.status)}
}
