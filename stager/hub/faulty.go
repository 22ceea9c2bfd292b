package hub

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// otherCommit is what the wrong-commit fault claims.
const otherCommit = "badc0de5badc0de5badc0de5badc0de5badc0de5"

// instead gives the answers that do not come from a handler; it reports whether there was one.
func (s *Server) instead(a http.ResponseWriter, r *http.Request, fs faults) bool {
	for _, f := range fs {
		switch f.name {
		case "status":
			if f.status == http.StatusTooManyRequests {
				class, _ := s.quotas.limits.class(r.URL.Path)
				setRateLimit(a, class, 0, 0)
			}
			(&refusal{status: f.status, message: "A fault that was asked for"}).write(a)
		case "return-reset-connection":
			reset(a)
		case "stall-always":
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		case "html-body":
			a.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(a, "<!DOCTYPE html><html><body>We are down for maintenance.</body></html>\n")
		case "endless-body":
			a.Header().Set("Content-Type", "application/json")
			endless(a, r)
		default:
			continue
		}
		return true
	}
	return false
}

// reset ends the connection so that the client sees a reset and not an end.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func endless(w http.ResponseWriter, r *http.Request) {
	blank := []byte(strings.Repeat(" ", 64<<10))
	for r.Context().Err() == nil {
		if _, err := w.Write(blank); err != nil {
			return
		}
	}
}

// faulty is a response writer that keeps its promises badly.
type faulty struct {
	http.ResponseWriter
	r      *http.Request
	faults faults
	wrote  bool
	length int64 // of the body; 0 when unknown
	sent   int64
}

func (w *faulty) WriteHeader(status int) {
	if w.wrote {
		return
	}
	w.wrote = true
	h := w.Header()
	w.length, _ = strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	for _, f := range w.faults {
		switch f.name {
		case "wrong-commit":
			if h.Get("X-Repo-Commit") != "" {
				h.Set("X-Repo-Commit", otherCommit)
			}
		case "header":
			name, value, _ := strings.Cut(f.arg, ":")
			if value = strings.TrimSpace(value); value == "" {
				h.Del(name)
			} else {
				h.Set(name, value)
			}
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Flush implements http.Flusher.
func (w *faulty) Flush() {
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w.ResponseWriter).Flush()
}

// Write sends p up to where a fault is due, lets it happen, and goes on.
func (w *faulty) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	total := 0
	for _, f := range w.due(len(p)) {
		n, err := w.pass(p[total : f.after-w.start(total)])
		total += n
		if err != nil {
			return total, err
		}
		w.happen(f)
	}
	n, err := w.pass(p[total:])
	return total + n, err
}

// start returns the offset in the body of the slice of which n bytes are sent.
func (w *faulty) start(n int) int64 { return w.sent - int64(n) }

// due returns the faults that happen within the next n bytes, in their order.
func (w *faulty) due(n int) faults {
	var due faults
	for _, f := range w.faults {
		if f.name != "cut" && f.name != "stall" {
			continue
		}
		if f.after < 0 {
			f.after = min(1<<20, w.length/2)
		}
		if f.after >= w.sent && f.after < w.sent+int64(n) {
			due = append(due, f)
		}
	}
	slices.SortFunc(due, func(a, b fault) int { return int(a.after - b.after) })
	return due
}

func (w *faulty) happen(f fault) {
	w.Flush()
	if f.name == "cut" {
		panic(http.ErrAbortHandler)
	}
	var woken <-chan time.Time
	if f.pause >= 0 {
		woken = time.After(f.pause)
	}
	select {
	case <-woken:
	case <-w.r.Context().Done():
		panic(http.ErrAbortHandler)
	}
}

func (w *faulty) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// pass sends p, with one bit flipped if that is in it.
func (w *faulty) pass(p []byte) (int, error) {
	if i := w.length/2 - w.sent; w.faults.has("return-corrupted-data") && i >= 0 && i < int64(len(p)) {
		p = slices.Clone(p)
		p[i] ^= 1
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// inListing changes what the tree, the paths-info and the model info say of files.
func (fs faults) inListing(entries []entry) []entry {
	for _, f := range fs {
		for i := range entries {
			f.inEntry(&entries[i])
		}
		if f.name == "file-in-tree" {
			entries = append(entries, entry{Type: "file", OID: fmt.Sprintf("%x", GitSHA1(nil)), Size: "0", Path: f.arg})
		}
	}
	return entries
}

func (f fault) inEntry(e *entry) {
	switch f.name {
	case "wrong-size-in-tree", "size-in-tree":
		n, _ := e.Size.Int64()
		e.Size = json.Number(strconv.FormatInt(n+1, 10))
		if f.name == "size-in-tree" {
			e.Size = json.Number(f.arg)
		}
		if e.LFS != nil {
			e.LFS.Size = e.Size
		}
	case "wrong-sha256-in-tree":
		if e.LFS != nil {
			e.LFS.OID = strings.Repeat("0", 64)
		}
	case "wrong-sha1-in-tree":
		if e.LFS == nil {
			e.OID = strings.Repeat("0", 40)
		}
	case "type-in-tree":
		e.Type = f.arg
	}
}
