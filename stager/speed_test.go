package stager_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// shards is a repository of files of so many chunks each.
func shards(chunks ...int) *repo {
	r := &repo{name: "google/gemma-test", files: map[string][]byte{}, large: 1000}
	for i, n := range chunks {
		data := bytes.Repeat(stagertest.Bytes(chunkSize), n)
		for j := range n {
			binary.LittleEndian.PutUint64(data[j*chunkSize+100:], uint64(i*n+j)) // no chunk is like another
		}
		copy(data, stagertest.Safetensors(len(data))[:100])
		r.files["model-"+string(rune('a'+i))+".safetensors"] = data
	}
	return r
}

// link is a network in virtual time: each range waits for its turn on the link, then for its own stream.
type link struct {
	trip   time.Duration // before the first byte
	stream time.Duration // of a chunk over one stream
	total  time.Duration // of a chunk over the whole link

	mu         sync.Mutex
	free       time.Time // when the link is
	open, most int
	order      []string // paths
}

func (l *link) bytes(_ context.Context, path string, _ int64, data []byte) (io.Reader, error) {
	l.mu.Lock()
	l.order = append(l.order, path)
	l.open++
	l.most = max(l.most, l.open)
	share := float64(len(data)) / chunkSize
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(share * float64(l.total)))
	wait := max(l.free.Sub(now), time.Duration(share*float64(l.stream))) + l.trip
	l.mu.Unlock()
	time.Sleep(wait)
	l.mu.Lock()
	l.open--
	l.mu.Unlock()
	return strings.NewReader(string(data)), nil
}

// TestAdapts stages over links that are modelled, in virtual time. Every chunk is asked for once.
func TestAdapts(t *testing.T) {
	const chunks = 600
	for name, test := range map[string]struct {
		link   *link
		most   int // reads in flight
		within time.Duration
	}{
		// 8 streams would need 30 s.
		"a cap on each stream": {&link{stream: 400 * time.Millisecond}, 64, 9 * time.Second},
		"a long round trip":    {&link{trip: 400 * time.Millisecond}, 64, 9 * time.Second},
		// As fast as the link, whatever is tried.
		"a link": {&link{trip: 20 * time.Millisecond, total: 20 * time.Millisecond}, 16, 12500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, bucket := shards(chunks/2, chunks/2), stagertest.NewBucket(t)
				source := &memory{repo: r, bytes: test.link.bytes}
				s := stager.New(stager.Config{Source: source, Store: bucket.Store(nil), ChunkSize: chunkSize, Memory: 160 * chunkSize})
				result, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
				if err != nil || result.Elapsed > test.within {
					t.Errorf("%v, %v", result.Elapsed, err)
				}
				if test.link.most > test.most {
					t.Errorf("%d ranges at once", test.link.most)
				}
				if len(source.fetched) != chunks || len(test.link.order) != chunks {
					t.Errorf("%d ranges are asked for %d times", len(source.fetched), len(test.link.order))
				}
			})
		})
	}
}

// TestSplitsChunks has buffers for few chunks, so that it takes parts of chunks to have 8 reads in flight; and
// buffers for all, so that only the first chunks come in parts.
func TestSplitsChunks(t *testing.T) {
	const chunk = 4 << 20
	r, bucket := shards(8*chunk/chunkSize+3), stagertest.NewBucket(t)
	source := &memory{repo: r}
	s := stager.New(stager.Config{Source: source, Store: bucket.Store(nil), ChunkSize: chunk, Memory: 4 * chunk})
	result, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(source.fetched); n != 2*8+1 {
		t.Errorf("%d ranges, want two of 2 MiB for each of 8 chunks, and one for the last", n)
	}
	if f := result.Manifest.Files[0]; len(f.Chunks) != 9 {
		t.Errorf("%d sums", len(f.Chunks))
	}
	// Another division gives the same sums: what is in the manifest does not depend on it.
	source = &memory{repo: r}
	other := stager.New(stager.Config{Source: source, Store: stagertest.NewBucket(t).Store(nil), ChunkSize: chunk, Memory: 32 * chunk})
	if again, err := other.Stage(t.Context(), manifest.Reference{Repo: r.name}); err != nil || again.Sum != result.Sum {
		t.Errorf("%v, %v", again.Sum, err)
	}
	if n := len(source.fetched); n != 2*4+4+1 {
		t.Errorf("%d ranges, want two for each of the first 4 chunks, and one for each of the others", n)
	}
}

// TestSideBySide asks for the bytes of two large files in turn, the small file's first.
func TestSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, l := shards(1, 40, 40), &link{trip: time.Second}
		s := stager.New(stager.Config{Source: &memory{repo: r, bytes: l.bytes}, Store: stagertest.NewBucket(t).Store(nil), ChunkSize: chunkSize, Memory: 160 * chunkSize, Streams: 1, MostStreams: 1, Cores: 2})
		if _, err := s.Stage(t.Context(), manifest.Reference{Repo: r.name}); err != nil {
			t.Fatal(err)
		}
		const a, b, c = "model-a.safetensors", "model-b.safetensors", "model-c.safetensors"
		if want := []string{a, b, b, c, c, b, b, c, c}; !slices.Equal(l.order[:9], want) {
			t.Errorf("%q", l.order[:9])
		}
	})
}
