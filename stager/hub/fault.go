package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FaultHeader is the request header that asks for faults, several with commas between.
//
// The names of googleapis/storage-testbench mean what they mean there:
//
//	return-503                      that status instead of an answer (any from 400 to 599)
//	return-503-after-256K           the connection ends after 256 KiB of the body
//	return-broken-stream            … after 1 MiB, or half of a body that is shorter
//	return-broken-stream-after-64K
//	return-corrupted-data           one bit in the middle of the body is wrong
//	return-reset-connection         no answer at all
//	stall-always                    … but the connection stays open until the client leaves
//	stall-at-256KiB                 the body ends there and the connection stays open
//	stall-for-1s-after-128K         the body pauses
//
// The rest are lies that only a Hub can tell. Arguments are percent-encoded:
//
//	wrong-size-in-tree, wrong-sha256-in-tree, wrong-sha1-in-tree   of every file it can be said of
//	size-in-tree=N, type-in-tree=symlink                           of every file
//	file-in-tree=..%2Fetc%2Fpasswd                                 one more file
//	loop-in-tree                                                   the next page is the first
//	wrong-commit                                                   X-Repo-Commit names another one
//	header=X-Linked-Size:17                                        any header of the answer; empty: none
//	ignore-range                                                   200 and everything
//	html-body                                                      200 and a page for people
//	endless-body                                                   200 and white space without end
const FaultHeader = "X-Goog-Emulator-Instructions"

// fault is a name and its numbers.
type fault struct {
	name   string
	arg    string
	status int           // return-N
	after  int64         // bytes of the body; -1: half
	pause  time.Duration // below 0: until the client leaves
}

type faults []fault

func (fs faults) has(name string) bool {
	return slices.ContainsFunc(fs, func(f fault) bool { return f.name == name })
}

var numbered = regexp.MustCompile(`^(return|stall)-(?:(\d{3})|(broken-stream)|(?:for-(\d{1,5})s))(?:-after-(\d{1,9})K)?(?:/retry-(\d+))?$`)

// parseFaults reads a list of faults.
func parseFaults(list string) (faults, error) {
	var fs faults
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		f, err := parseFault(s)
		if err != nil {
			return nil, err
		}
		if f.name != "" {
			fs = append(fs, f)
		}
	}
	return fs, nil
}

func parseFault(s string) (fault, error) {
	if m := numbered.FindStringSubmatch(s); m != nil {
		return numberedFault(s, m)
	}
	name, raw, hasArg := strings.Cut(s, "=")
	arg, err := url.PathUnescape(raw)
	if err != nil {
		return fault{}, fmt.Errorf("fault %q: %w", s, err)
	}
	f := fault{name: name, arg: arg}
	switch name {
	case "stall-at-256KiB":
		return fault{name: "stall", after: 256 << 10, pause: -1}, nil
	case "return-corrupted-data", "return-reset-connection", "stall-always", "wrong-size-in-tree", "wrong-sha256-in-tree",
		"wrong-sha1-in-tree", "loop-in-tree", "wrong-commit", "ignore-range", "html-body", "endless-body":
		if !hasArg {
			return f, nil
		}
	case "file-in-tree", "type-in-tree", "header":
		if hasArg {
			return f, nil
		}
	case "size-in-tree":
		var n json.Number
		if json.Unmarshal([]byte(arg), &n) == nil {
			return f, nil
		}
	}
	return fault{}, fmt.Errorf("fault %q is not known", s)
}

// numberedFault makes a fault of the parts that the pattern found.
func numberedFault(s string, m []string) (fault, error) {
	verb, status, broken, seconds, after, retry := m[1], m[2], m[3], m[4], m[5], m[6]
	if n, err := strconv.Atoi(retry); err == nil && n >= 3 {
		return fault{}, nil // the client counts its attempts, and the third is to succeed
	}
	number := func(digits string) int64 { n, _ := strconv.ParseInt(digits, 10, 64); return n } // the pattern bounds them
	switch {
	case verb == "return" && status != "" && after == "" && number(status) >= 400 && number(status) < 600:
		return fault{name: "status", status: int(number(status))}, nil
	case verb == "return" && (status != "" || broken != "") && after != "":
		return fault{name: "cut", after: number(after) << 10}, nil
	case verb == "return" && broken != "":
		return fault{name: "cut", after: -1}, nil
	case verb == "stall" && seconds != "" && after != "":
		return fault{name: "stall", after: number(after) << 10, pause: time.Duration(number(seconds)) * time.Second}, nil
	}
	return fault{}, fmt.Errorf("fault %q is not known", s)
}

// plans are the faults to come.
type plans struct {
	mu   sync.Mutex
	list []*plan
}

type plan struct {
	match func(*http.Request) bool
	next  []faults
}

// Plan gives the next requests that match one entry of list each, as [FaultHeader] would: "" leaves
// a request alone. It panics when an entry is no fault.
func (s *Server) Plan(match func(*http.Request) bool, list ...string) {
	p := &plan{match: match}
	for _, entry := range list {
		fs, err := parseFaults(entry)
		if err != nil {
			panic("hub: " + err.Error())
		}
		p.next = append(p.next, fs)
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = append(s.faults.list, p)
}

// CDNFile matches the requests for the bytes of the LFS file of that base name.
func CDNFile(base string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.URL.Query().Get("response-content-disposition") == disposition(base)
	}
}

// take returns the faults that are planned for a request and strikes them out.
func (p *plans) take(r *http.Request) faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, one := range p.list {
		if !one.match(r) {
			continue
		}
		fs := one.next[0]
		if one.next = one.next[1:]; len(one.next) == 0 {
			p.list = slices.Delete(p.list, i, i+1)
		}
		return fs
	}
	return nil
}

type faultsKey struct{}

func faultsOf(r *http.Request) faults {
	fs, _ := r.Context().Value(faultsKey{}).(faults)
	return fs
}

// withFaults serves a request with the faults that its header or a plan asks for.
func (s *Server) withFaults(a *answer, r *http.Request, next http.Handler) {
	fs, err := parseFaults(r.Header.Get(FaultHeader))
	if err != nil {
		malformed("%v", err).(*refusal).write(a)
		return
	}
	fs = append(fs, s.faults.take(r)...)
	if len(fs) == 0 {
		next.ServeHTTP(a, r)
		return
	}
	s.cfg.Log.Info("fault", "path", r.URL.Path, "faults", fmt.Sprint(fs))
	r = r.WithContext(context.WithValue(r.Context(), faultsKey{}, fs))
	w := &faulty{ResponseWriter: a, r: r, faults: fs}
	if !s.instead(w, r, fs) {
		next.ServeHTTP(w, r)
	}
}
