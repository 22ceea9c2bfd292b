package stager

import (
	"sync"

	"github.com/headstart-serving/headstart/manifest"
)

// Event says how far a model is.
type Event struct {
	Kind    EventKind
	Model   manifest.Model
	Path    string // of the file that the event is about; "" where it is about the model
	Size    int64  // bytes of that file
	Fetched int64  // bytes received from the source in this run
	Copied  int64  // bytes copied in this run from another commit in the bucket
	Stored  int64  // bytes of the model that are in the bucket and checked, with what was there
	Total   int64  // bytes of the model
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
	report func(Event)

	mu sync.Mutex
	at Event
}

func (m *meter) event(kind EventKind, path string, size, fetched, stored int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at.Kind, m.at.Path, m.at.Size = kind, path, size
	m.at.Fetched += fetched
	m.at.Stored += stored
	if m.report != nil {
		m.report(m.at)
	}
}

// copied is a whole file that another commit had.
func (m *meter) copied(path string, size int64) {
	m.mu.Lock()
	m.at.Copied += size
	m.mu.Unlock()
	m.event(Advanced, path, size, 0, size)
	m.event(FileStored, path, size, 0, 0)
}

func (m *meter) counted() Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}
