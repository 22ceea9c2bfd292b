package stager_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

var allFaults = []stagertest.Fault{stagertest.Lost, stagertest.Late, stagertest.DeadBefore, stagertest.DeadAfter}

// TestCrashMatrix lets every write to the bucket go wrong in every way. A second run must leave the same
// bucket, byte for byte, and ask the source again for no more than what was in flight.
func TestCrashMatrix(t *testing.T) {
	r := smallRepo()
	ref := manifest.Reference{Repo: r.name}
	whole := stagertest.NewBucket(t)
	store := whole.Store(nil)
	if _, err := newStager(&memory{repo: r}, store).Stage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	want, writes := whole.Contents(), store.Writes()
	// put ×3, the record and the trial, part ×3, commit, manifest, ref, delete the record and the trial
	if len(writes) != 13 {
		t.Errorf("%d writes: %q", len(writes), writes)
	}
	cases := 0
	for n := range writes {
		for _, fault := range allFaults {
			cases++
			bucket, source := stagertest.NewBucket(t), &memory{repo: r}
			_, err := newStager(source, bucket.Store(func(i int, _ string) stagertest.Fault {
				if i == n {
					return fault
				}
				return stagertest.None
			})).Stage(t.Context(), ref)
			if !errors.Is(err, stagertest.ErrFault) {
				t.Errorf("write %d %s: %v", n, fault, err)
			}
			if _, err := newStager(source, bucket.Store(nil)).Stage(t.Context(), ref); err != nil {
				t.Errorf("write %d %s, then again: %v", n, fault, err)
			}
			if got := bucket.Contents(); !maps.Equal(got, want) {
				t.Errorf("write %d %s: the bucket has %q", n, fault, keys(got))
			}
			for piece, times := range source.fetched {
				if times > 2 {
					t.Errorf("write %d %s: %s was fetched %d times", n, fault, piece, times)
				}
			}
		}
	}
	t.Logf("%d crashes", cases)
}

// TestManyCrashes crashes again and again until a run comes through.
func TestManyCrashes(t *testing.T) {
	r := smallRepo()
	ref := manifest.Reference{Repo: r.name}
	whole := stagertest.NewBucket(t)
	if _, err := newStager(&memory{repo: r}, whole.Store(nil)).Stage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	want := whole.Contents()
	random := rand.New(rand.NewPCG(1, 2))
	runs := 0
	for range 100 {
		bucket, source := stagertest.NewBucket(t), &memory{repo: r}
		for tries := 0; ; tries++ {
			runs++
			var mu sync.Mutex
			_, err := newStager(source, bucket.Store(func(int, string) stagertest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if random.IntN(8) > 0 {
					return stagertest.None
				}
				return allFaults[random.IntN(len(allFaults))]
			})).Stage(t.Context(), ref)
			if err == nil {
				break
			}
			if !errors.Is(err, stagertest.ErrFault) || tries == 100 {
				t.Fatalf("try %d: %v", tries, err)
			}
		}
		if got := bucket.Contents(); !maps.Equal(got, want) {
			t.Fatalf("the bucket has %q", keys(got))
		}
	}
	t.Logf("%d runs", runs)
}

func keys(m map[string]string) []string {
	var ks []string
	for k, v := range m {
		ks = append(ks, fmt.Sprintf("%s (%d bytes)", k, len(v)))
	}
	return ks
}

// wire does to requests what a network and a dying process do.
type wire struct {
	http.RoundTripper
	at    int // the request that goes wrong, -1 for none
	fault stagertest.Fault
	kill  context.CancelFunc

	mu       sync.Mutex
	requests []string
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	n := len(w.requests)
	w.requests = append(w.requests, r.Method+" "+r.URL.Path)
	w.mu.Unlock()
	if n != w.at {
		return w.RoundTripper.RoundTrip(r)
	}
	switch w.fault {
	case stagertest.Late, stagertest.DeadAfter:
		answer, err := w.RoundTripper.RoundTrip(r)
		if err == nil {
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	default:
		if r.Body != nil {
			r.Body.Close()
		}
	}
	if w.fault == stagertest.DeadBefore || w.fault == stagertest.DeadAfter {
		w.kill()
		return nil, context.Canceled
	}
	return &http.Response{Status: "503 Service Unavailable", StatusCode: 503, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		Body: io.NopCloser(strings.NewReader("unavailable")), Request: r}, nil
}

// TestCloudStorageCrashMatrix lets every request to Cloud Storage go wrong in every way: the store mends
// what is only lost, and a second run mends what died.
func TestCloudStorageCrashMatrix(t *testing.T) {
	r := smallRepo()
	ref := manifest.Reference{Repo: r.name}
	first := &wire{at: -1}
	_, open := serveBuckets(t)
	if _, err := newStager(&memory{repo: r}, open("whole", first)).Stage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	want := contents(t, open("whole", nil))
	for n := range first.requests {
		for _, fault := range allFaults {
			name := fmt.Sprintf("models-%d-%d", n, fault)
			ctx, kill := context.WithCancel(t.Context())
			w := &wire{at: n, fault: fault, kill: kill}
			_, err := newStager(&memory{repo: r}, open(name, w)).Stage(ctx, ref)
			kill()
			if dead := fault == stagertest.DeadBefore || fault == stagertest.DeadAfter; dead != (err != nil) || dead && !errors.Is(err, context.Canceled) {
				t.Errorf("%s %s: %v", w.requests[n], fault, err)
			}
			store := open(name, nil)
			if err != nil {
				if _, err := newStager(&memory{repo: r}, store).Stage(t.Context(), ref); err != nil {
					t.Errorf("%s %s, then again: %v", w.requests[n], fault, err)
				}
			}
			if got := contents(t, store); !maps.Equal(got, want) {
				t.Errorf("%s %s: the bucket has %q", w.requests[n], fault, keys(got))
			}
		}
	}
	t.Logf("%d crashes", len(first.requests)*len(allFaults))
}

// TestTwoStagers lets two stagers of one model run at once, against each kind of bucket.
func TestTwoStagers(t *testing.T) {
	r := exampleRepo()
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			var raw [3][]byte
			for i := range raw {
				store := open(t)
				wg.Go(func() {
					result, err := newStager(&memory{repo: r}, store).Stage(t.Context(), manifest.Reference{Repo: r.name})
					if err != nil {
						t.Error(err)
						return
					}
					raw[i] = result.Raw
				})
			}
			wg.Wait()
			if !bytes.Equal(raw[0], raw[1]) || !bytes.Equal(raw[1], raw[2]) {
				t.Error("they end with different manifests")
			}
			checkStaged(t, open(t), r)
		})
	}
}

var _ stager.Source = (*memory)(nil)
