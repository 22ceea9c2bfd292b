package stager

import (
	"sync"

	"github.com/headstart-serving/headstart/manifest"
)

// Event says how far a model is.
type Event struct {
	Kind    EventKind
	Model   manifest.Model
	Path    string          // of the file that the event is about; "" where it is about the model
	Size    int64           // bytes of that file
	SHA256  manifest.Digest // of that file, once it is stored
	Fetched int64           // bytes received from the source in this run
	Copied  int64           // bytes copied in this run from another commit in the bucket
	Stored  int64           // bytes of the model that are in the bucket and checked, with what was there
	Reused  int64           // of Stored, what an earlier run had left
	There   int64           // bytes of the model that an earlier run left: of whole files when Planned, with those of parts later
	Total   int64           // bytes of the model
	Files   int             // of the model
}

// EventKind is what has happened.
type EventKind string

// The kinds of events, in the order of a run. Planned comes once, after it Advanced and FileStored for
// each file in any order, at last Committed. A model that is staged already shows Committed alone.
const (
	Planned    EventKind = "planned"
	Advanced   EventKind = "advanced" // some bytes of Path were received, copied or stored
	FileStored EventKind = "file"     // Path is in the bucket, verified
	Committed  EventKind = "committed"
)

// meter counts and reports. One event is reported at a time.
type meter struct {
	report  func(Event)
	metrics *Metrics

	mu sync.Mutex
	at Event
}

// event reports bytes that were received or stored, or a moment of the run.
func (m *meter) event(kind EventKind, path string, size, fetched, stored int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.metrics.moved(fetched, stored, sent)
	m.send(kind, path, size, fetched, stored)
}

// took reports bytes of a file that an earlier run left in the bucket.
func (m *meter) took(path string, size, stored int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.metrics.moved(0, stored, reused)
	m.at.Reused += stored
	m.send(Advanced, path, size, 0, stored)
}

// file reports a file that is in the bucket and verified.
func (m *meter) file(f manifest.File, how string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.metrics.file(f.Size, how)
	m.at.SHA256 = f.SHA256
	m.send(FileStored, f.Path, f.Size, 0, 0)
	m.at.SHA256 = manifest.Digest{}
}

func (m *meter) send(kind EventKind, path string, size, fetched, stored int64) {
	m.at.Kind, m.at.Path, m.at.Size = kind, path, size
	m.at.Fetched += fetched
	m.at.Stored += stored
	if m.report != nil {
		m.report(m.at)
	}
}

// copied reports a whole file that another commit had.
func (m *meter) copied(f manifest.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.metrics.copied(f.Size)
	m.at.Copied += f.Size
	m.send(Advanced, f.Path, f.Size, 0, f.Size)
	m.at.SHA256 = f.SHA256
	m.send(FileStored, f.Path, f.Size, 0, 0)
	m.at.SHA256 = manifest.Digest{}
}

// planned reports how much there is, and how much of it in whole files is in the bucket.
func (m *meter) planned(files int, total, there int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.metrics.size.Set(float64(total))
	m.at.Files, m.at.Total, m.at.There = files, total, there
	m.send(Planned, "", 0, 0, 0)
}

// found corrects what an earlier run left, by the parts of files.
func (m *meter) found(there int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at.There = there
}

func (m *meter) counted() Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}
