package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/headstart-serving/headstart/stager"
)

const stageEventsHelp = `Events with --json, one object a line:
  planned   once: model, commit, files, bytes, and how many bytes of whole files are there already
  file      a file is in the bucket: path, bytes, sha256, seconds since its first byte
  progress  every second: bytes (stored and checked), total, bytes_per_second (received),
            seconds_left, files (those in flight: path, bytes stored, received, total), and a
            note of what is waited for
  retry     a request is made again: of (hub or bucket), cause (rate_limit, status, stalled,
            stale, connection), wait_seconds, error
  staged    the last one: model, commit, pin, ref, files, bytes, already, fetched, copied
            (in the bucket, from another commit), reused, seconds, bucket, verified, kept_bytes
            (what the bucket did not let go of)
  error     or this one: code (the exit code), error
A model that is staged already has no event but the last.`

type plannedEvent struct {
	Event  string `json:"event"`
	Model  string `json:"model"`
	Commit string `json:"commit"`
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	There  int64  `json:"there"`
}

type fileEvent struct {
	Event   string  `json:"event"`
	Path    string  `json:"path"`
	Bytes   int64   `json:"bytes"`
	SHA256  string  `json:"sha256"`
	Seconds float64 `json:"seconds"`
}

type retryEvent struct {
	Event string       `json:"event"`
	Of    string       `json:"of"`
	Cause stager.Cause `json:"cause"`
	Wait  float64      `json:"wait_seconds"`
	Error string       `json:"error"`
}

type stagedEvent struct {
	Event    string  `json:"event"`
	Model    string  `json:"model"`
	Commit   string  `json:"commit"`
	Pin      string  `json:"pin"`
	Ref      string  `json:"ref"`
	Files    int     `json:"files"`
	Bytes    int64   `json:"bytes"`
	Already  bool    `json:"already"`
	Fetched  int64   `json:"fetched"`
	Copied   int64   `json:"copied"`
	Reused   int64   `json:"reused"`
	Seconds  float64 `json:"seconds"`
	Bucket   string  `json:"bucket"`
	Verified string  `json:"verified"`
	Kept     int64   `json:"kept_bytes"`
}

// watch turns what a stager tells into what is shown: samples of how far it is, and events.
type watch struct {
	events io.Writer // nil for none

	mu    sync.Mutex
	at    stager.Event
	done  int // files
	files []*watched
	wait  stager.Retry // the one that is waited for longest
	until time.Time
}

// watched is a file in flight.
type watched struct {
	fileSample
	began time.Time
}

func newWatch() *watch { return &watch{} }

// Event takes up an event of the stager.
func (w *watch) Event(e stager.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.at
	w.at = e
	switch e.Kind {
	case stager.Planned:
		w.emit(plannedEvent{"planned", e.Model.Repo, e.Model.Commit, e.Files, e.Total, e.There})
	case stager.Advanced:
		f := w.file(e)
		f.Stored += e.Stored - before.Stored
		f.Arrived += e.Fetched - before.Fetched + e.Copied - before.Copied + e.Reused - before.Reused
	case stager.FileStored:
		f := w.file(e)
		w.files = slices.DeleteFunc(w.files, func(g *watched) bool { return g == f })
		w.done++
		w.emit(fileEvent{"file", e.Path, e.Size, e.SHA256.String(), time.Since(f.began).Seconds()})
	}
}

func (w *watch) file(e stager.Event) *watched {
	for _, f := range w.files {
		if f.Path == e.Path {
			return f
		}
	}
	f := &watched{fileSample{Path: e.Path, Size: e.Size}, time.Now()}
	w.files = append(w.files, f)
	return f
}

// Retried takes up that a request is made again.
func (w *watch) Retried(r stager.Retry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if until := time.Now().Add(r.Wait); until.After(w.until) {
		w.wait, w.until = r, until
	}
	w.emit(retryEvent{"retry", r.Of, r.Cause, r.Wait.Seconds(), oneLine(r.Err.Error())})
}

func (w *watch) emit(event any) {
	if w.events != nil {
		// A write that fails is found when the result is written.
		_ = json.NewEncoder(w.events).Encode(event)
	}
}

// Sample says how far the model is.
func (w *watch) Sample() sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := sample{Done: w.at.Stored, Total: w.at.Total, Arrived: w.at.Fetched}
	for _, f := range w.files {
		s.Files = append(s.Files, f.fileSample)
	}
	if w.at.Files > 0 {
		s.Of = fmt.Sprintf("%d of %d files", w.done, w.at.Files)
	}
	if w.at.Total > 0 && w.at.Fetched+w.at.Copied+w.at.Reused >= w.at.Total {
		s.Still = "all has arrived, but the bucket has taken nothing"
	}
	if left := time.Until(w.until); left > 500*time.Millisecond {
		who := map[string]string{"hub": "the Hub", "bucket": "the bucket"}[w.wait.Of]
		s.Note = fmt.Sprintf("waiting for %s: %.100s, %s left", who, oneLine(w.wait.Err.Error()), left.Round(time.Second))
	}
	return s
}

// lines is a writer for several goroutines that write whole lines.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
