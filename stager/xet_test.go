package stager_test

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/xorb"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// serveXet returns the URL of a Hub that has large files in Xet alone, and a source that reads it. Xorbs have a bit more
// than three chunks of the manifest, so that ranges lie across their ends.
func serveXet(t *testing.T, r ...hub.Repo) (*hub.Server, string, *hf.Source) {
	t.Helper()
	s := hub.New(hub.Config{Xet: &hub.Xet{Bridge: 1, Packing: xorb.Config{Chunk: 30_011, Chunks: 7}}}, r...)
	api, cdn, cas := httptest.NewServer(s.Handler()), httptest.NewServer(s.CDN()), httptest.NewServer(s.CAS())
	for _, one := range []*httptest.Server{api, cdn, cas} {
		t.Cleanup(one.Close)
	}
	s.SetCDN(cdn.URL)
	s.SetCAS(cas.URL)
	source, err := hf.New(hf.Config{Endpoint: api.URL, Wait: time.Millisecond, Patient: time.Millisecond, Tries: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return s, api.URL, source
}

// TestXet stages to each kind of bucket, twice.
func TestXet(t *testing.T) {
	r := exampleRepo()
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			h, _, source := serveXet(t, r)
			if _, err := stage(t, source, open(t)); err != nil {
				t.Fatal(err)
			}
			checkStaged(t, open(t), r)
			plans := 0
			for _, r := range h.Requests() {
				if strings.HasPrefix(r.Path, "/xet-bridge-us/") {
					t.Errorf("%s over plain HTTP", r.Path)
				}
				if r.Host == "cas" {
					plans++
				}
			}
			if plans < 67 {
				t.Errorf("%d plans", plans)
			}
			h.ResetRequests()
			if result, err := stage(t, source, open(t)); err != nil || !result.Already || len(h.Requests()) != 1 {
				t.Errorf("%+v, %v, %d requests", result, err, len(h.Requests()))
			}
		})
	}
}

// TestXetKilled kills a process that stages over Xet at each of its events, and lets another one go on.
func TestXetKilled(t *testing.T) {
	r := smallRepo()
	_, url, source := serveXet(t, r)
	killed(t, r, url, func() stager.Source { return source })
}

// TestXetFaults meets faults at every call, one in four, by chance: each run ends in the right bucket or in an error
// of one line, and a run without faults goes on from there to the right bucket.
func TestXetFaults(t *testing.T) {
	faults := []string{"return-401", "return-403", "return-404", "return-408", "return-429", "return-500", "return-503", "return-reset-connection", "return-broken-stream", "return-broken-stream-after-64K",
		"return-503-after-0K", "return-corrupted-data", "html-body", "ignore-range", "header=Content-Encoding:gzip", "header=Content-Range:bytes 0-9/10", "header=X-Xet-Access-Token:", "header=X-Xet-Cas-Url:nonsense"}
	failed := map[string]int{}
	for seed := range uint64(60) {
		r := smallRepo()
		h, _, source := serveXet(t, r)
		random := rand.New(rand.NewPCG(seed, 0))
		plan := make([]string, 2000)
		for i := range plan {
			if random.IntN(4) == 0 {
				plan[i] = faults[random.IntN(len(faults))]
			}
		}
		var calm atomic.Bool
		h.Plan(func(r *http.Request) bool {
			return !calm.Load() && (strings.HasPrefix(r.URL.Path, "/v2/") || strings.HasPrefix(r.URL.Path, "/v1/") || strings.HasPrefix(r.URL.Path, "/xorbs/") || strings.Contains(r.URL.Path, "xet-read-token"))
		}, plan...)
		bucket := stagertest.NewBucket(t)
		model := manifest.Model{Repo: r.name, Commit: r.Commit()}
		if _, err := stage(t, source, bucket.Store(nil)); err != nil {
			kind := "other"
			switch {
			case errors.As(err, new(*manifest.MismatchError)):
				kind = "mismatch"
			case errors.Is(err, manifest.ErrInvalid):
				kind = "invalid"
			}
			failed[kind]++
			if s := err.Error(); strings.Contains(s, "\n") || strings.Contains(s, "Signature") || !strings.Contains(s, "model-") && !strings.Contains(s, "tokenizer.model") && !strings.Contains(s, r.name) {
				t.Errorf("seed %d: %v", seed, err)
			}
			if _, ok := bucket.Contents()[model.Key()]; ok {
				t.Errorf("seed %d: a manifest after %v", seed, err)
			}
			calm.Store(true)
			// Parts of several files may be wrong. Each run finds out about one, at least, and begins it anew.
			for tries := 0; err != nil && tries < len(r.files); tries++ {
				if _, err = stage(t, source, bucket.Store(nil)); err != nil && !errors.As(err, new(*manifest.MismatchError)) {
					t.Errorf("seed %d, without faults: %v", seed, err)
				}
			}
			if err != nil {
				t.Errorf("seed %d, in the end: %v", seed, err)
			}
		}
		checkStaged(t, bucket.Store(nil), r)
	}
	t.Logf("failed, and came through the second time: %v of 60", failed)
}

// TestXetCorrupted flips a bit in the second of three plain chunks, of one file or another: only the sha256 can tell.
func TestXetCorrupted(t *testing.T) {
	r := exampleRepo()
	for n := range 4 {
		h, _, source := serveXet(t, r)
		var calm atomic.Bool
		h.Plan(func(r *http.Request) bool {
			return !calm.Load() && strings.HasPrefix(r.URL.Path, "/xorbs/") && r.Header.Get("Range") == "bytes=0-90056"
		}, append(make([]string, n), slices.Repeat([]string{"return-corrupted-data"}, 100)...)...)
		bucket := stagertest.NewBucket(t)
		_, err := stage(t, source, bucket.Store(nil))
		var mismatch *manifest.MismatchError
		if !errors.As(err, &mismatch) || mismatch.Sum != "sha256" || !strings.HasPrefix(mismatch.Path, "model-") && mismatch.Path != "sub/dir/tokenizer.model" {
			t.Errorf("%v", err)
		}
		calm.Store(true)
		// Parts of several files are wrong. Each run finds out about one, at least, and begins it anew.
		for tries := 0; err != nil && tries < len(r.files); tries++ {
			_, err = stage(t, source, bucket.Store(nil))
		}
		if err != nil {
			t.Errorf("in the end: %v", err)
		}
		checkStaged(t, bucket.Store(nil), r)
	}
}
