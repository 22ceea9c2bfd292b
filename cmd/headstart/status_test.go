package main

import (
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/loader"
)

func TestWriteStatus(t *testing.T) {
	s := loader.Status{Dir: "/cache", Passthrough: "yes", Cached: map[string]int64{"leased": 2e9, "loading": 4e9, "partial": 5e6, "copy": 2e9}, Entries: []loader.EntryStatus{
		{Progress: loader.Progress{Model: "google/a@1", Size: 2e9, Verified: 2e9, State: "complete", Source: "gs", Stalls: 3, Stalled: 1.25, Refetch: 4}, Leases: 2, Medium: "memory", Copy: &loader.CopyStatus{State: "complete", Verified: 2e9}},
		{Progress: loader.Progress{Model: "google/b@2", Size: 4e9, Verified: 1e9, State: "loading", Source: "gs", Recent: 1.5e9, Rate: 9e9, ETA: 2, Waiting: 17, Wanted: "model-2.safetensors at 33554432",
			Refetch: 2, Reason: "HTTP 503\nService Unavailable", Learnt: 12}, Leases: 1, Copy: &loader.CopyStatus{State: "waiting"}},
		{Progress: loader.Progress{Model: "google/c@3", Size: 5e6, State: "partial"}},
		{Progress: loader.Progress{Model: "google/d@4", Size: 5e6, Verified: 5e6, State: "complete"}, Medium: "memory", Copy: &loader.CopyStatus{State: "failed", Reason: "full\nup"}},
	}, Restarts: 2, Leases: []loader.LeaseStatus{{Target: "/models/b", Model: "google/b@2", Mode: loader.Stream, Since: time.Unix(0, 0).UTC()}}}
	var b strings.Builder
	if err := writeStatus(&b, s); err != nil {
		t.Fatal(err)
	}
	want := `cache /cache: 4 models, 2.0 GB leased, 4.0 GB loading, 5.0 MB partial, 2.0 GB of copies on the disk; passthrough yes; its worker died 2 times and was started again

MODEL       STATE     VERIFIED  OF      RATE      LEFT  LEASES  WAITING  STALLED  MEDIUM       SOURCE
google/a@1  complete  2.0 GB    2.0 GB  -         -     2       0        1.2s     memory+disk  gs
google/b@2  loading   1.0 GB    4.0 GB  1.5 GB/s  2s    1       17       -        -            gs
google/c@3  partial   0 B       5.0 MB  -         -     0       0        -        -            -
google/d@4  complete  5.0 MB    5.0 MB  -         -     0       0        -        memory       -

google/b@2: 17 reads wait, one for model-2.safetensors at 33554432; HTTP 503 Service Unavailable; 2 chunks were fetched again; in an order that was learnt (12 chunks); the disk has a copy of 0 B of it (waiting)
google/d@4: the disk has no copy of it: full up

TARGET     MODEL       MODE    SINCE
/models/b  google/b@2  stream  1970-01-01T00:00:00Z
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	if err := writeStatus(&b, loader.Status{Dir: "/cache", Passthrough: "unknown"}); err != nil || b.String() != "cache /cache: empty; passthrough unknown\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}
