package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

// stored is a bucket with a model, whose objects are a test's own.
func stored(m *fetchtest.Model) *fetchtest.Memory {
	s := &fetchtest.Memory{Objects: make(map[string][]byte)}
	for _, f := range m.Manifest.Files {
		s.Objects[m.Manifest.Model.Object(f.Path)] = slices.Clone(m.Content(f.Path))
	}
	return s
}

func show(all []fetch.Damage) string {
	var b strings.Builder
	for _, d := range all {
		for _, e := range d.Errors {
			fmt.Fprintf(&b, "%s %d %s; ", d.Path, e.Offset/chunk, e.Sum)
		}
	}
	return b.String()
}

// TestVerifyBucket finds all that is wrong, reads each chunk of the rest once, and tells damage from a bad way.
func TestVerifyBucket(t *testing.T) {
	m := fetchtest.NewModel(t, "org/verify", sizes())
	chunks := 0
	for i := range m.Manifest.Files {
		chunks += len(m.Manifest.Files[i].Chunks)
	}
	s := stored(m)
	var n atomic.Int64
	if found, err := fetch.VerifyBucket(t.Context(), s, m.Manifest, func(b int64) { n.Add(b) }); err != nil || len(found) > 0 || n.Load() != m.Manifest.Size() {
		t.Errorf("%s, %d bytes, %v", show(found), n.Load(), err)
	}
	if got := len(s.Requests()); got != chunks {
		t.Errorf("%d requests for %d chunks", got, chunks)
	}

	key := m.Manifest.Model.Object
	flip := func(path string, at int) { s.Objects[key(path)][at] ^= 1 }
	flip("a/2n", chunk)
	flip("model-00001-of-00002.safetensors", 0)
	flip("model-00001-of-00002.safetensors", 5*chunk)
	s.Objects[key("a/n")] = s.Objects[key("a/n")][:5]
	delete(s.Objects, key("config.json"))
	want := "a/2n 1 crc32c; a/n 0 size; config.json 0 size; model-00001-of-00002.safetensors 0 crc32c; model-00001-of-00002.safetensors 5 crc32c; "
	if found, err := fetch.VerifyBucket(t.Context(), s, m.Manifest, nil); err != nil || show(found) != want {
		t.Errorf("%q, %v; want %q", show(found), err, want)
	}
	if s.Refreshes() == 0 {
		t.Error("wrong bytes are not read again by another connection")
	}
}

// TestVerifyBucketOfOtherSums has a manifest whose sha256 is of other bytes than its CRC32Cs.
func TestVerifyBucketOfOtherSums(t *testing.T) {
	m := fetchtest.NewModel(t, "org/verify", sizes())
	want := ""
	for i := range m.Manifest.Files {
		m.Manifest.Files[i].SHA256[0] ^= 1
		want += m.Manifest.Files[i].Path + " 0 sha256; "
	}
	if found, err := fetch.VerifyBucket(t.Context(), stored(m), m.Manifest, nil); err != nil || show(found) != want {
		t.Errorf("%q, %v; want %q", show(found), err, want)
	}
}

// TestVerifyBucketFaults lets every chunk arrive wrong, short, late or not at all at first: that is no damage.
func TestVerifyBucketFaults(t *testing.T) {
	m := fetchtest.NewModel(t, "org/verify", sizes())
	for name, fault := range map[string]fetchtest.Fault{
		"other byte": {Flip: true}, "short": {Short: true}, "stalls": {Stall: true}, "breaks": {After: 1, Err: errors.New("broken")},
		"reset": {Err: syscall.ECONNRESET}, "busy": {Err: &fetch.StatusError{Code: 503}}, "small reads": {Step: 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := stored(m)
				s.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
					if r.Attempt == 1 {
						return &fault
					}
					return nil
				}
				if found, err := fetch.VerifyBucket(t.Context(), s, m.Manifest, nil); err != nil || len(found) > 0 {
					t.Errorf("%s, %v", show(found), err)
				}
			})
		})
	}
	for name, fault := range map[string]error{"always reset": syscall.ECONNRESET, "forbidden": &fetch.StatusError{Code: 403}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := stored(m)
				s.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault { return &fetchtest.Fault{Err: fault} }
				if found, err := fetch.VerifyBucket(t.Context(), s, m.Manifest, nil); !errors.Is(err, fault) || found != nil {
					t.Errorf("%s, %v", show(found), err)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fetch.VerifyBucket(ctx, stored(m), m.Manifest, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestVerifyBucketHoldsLittle never has more chunks in flight than there is memory for.
func TestVerifyBucketHoldsLittle(t *testing.T) {
	const size = 1 << 30 // of a chunk: there is memory for one
	m := &manifest.Manifest{Model: manifest.Model{Repo: "org/large", Commit: strings.Repeat("1", 40)}, ChunkSize: size,
		Files: []manifest.File{{Path: "a", Size: 5, Chunks: []uint32{0}}, {Path: "b", Size: 5, Chunks: []uint32{0}}}}
	var most, now atomic.Int32
	s := &fetchtest.Memory{Objects: map[string][]byte{m.Model.Object("a"): []byte("aaaaa"), m.Model.Object("b"): []byte("bbbbb")}}
	s.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		return nil
	}
	if found, err := fetch.VerifyBucket(t.Context(), s, m, nil); err != nil || len(found) != 2 || most.Load() != 1 {
		t.Errorf("%s, %v, %d at once", show(found), err, most.Load())
	}
}
