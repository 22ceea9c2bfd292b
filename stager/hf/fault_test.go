package hf_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
)

// calls are the kinds of requests that a Source makes.
var calls = []string{"GET /api/models/org/tiny/revision/", "GET /api/models/org/tiny/tree/", "HEAD /org/tiny/resolve/", "GET /api/resolve-cache/", "GET /xet-bridge-us/"}

// mended are faults that another try mends, at every call.
var mended = []string{"return-408", "return-429", "return-500", "return-502", "return-503", "return-504", "return-reset-connection", "stall-always",
	"return-429,header=Retry-After:1", "return-503,header=Retry-After:1", `return-429,header=RateLimit:"api";r=0;t=1`}

// bodies are faults in a body that another try mends: those of the API's documents and those of files.
var bodies = []string{"return-broken-stream-after-0K", "return-503-after-0K", "stall-for-9s-after-0K"}

func TestFaultsOnce(t *testing.T) {
	for _, call := range calls {
		faults := slices.Clone(mended)
		if !strings.HasPrefix(call, "HEAD") {
			faults = append(faults, bodies...)
		}
		if strings.Contains(call, "resolve-cache") || strings.Contains(call, "xet-bridge") {
			faults = append(faults, "return-401", "return-403", "return-404", "return-410", "html-body", "header=Content-Encoding:gzip")
		}
		if strings.Contains(call, "xet-bridge") {
			faults = append(faults, "return-broken-stream", "return-broken-stream-after-64K", "return-503-after-256K", "stall-at-256KiB", "ignore-range",
				"header=Content-Range:bytes 5-9/10", "header=Content-Range:nonsense")
		}
		for _, fault := range faults {
			t.Run(call+" "+fault, func(t *testing.T) {
				t.Parallel()
				s := serve(t, hub.Config{}, hf.Config{Stall: 150 * time.Millisecond})
				s.Plan(on(call), fault)
				if err := s.all(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestFaultsAlways ends with an error that names the file or the repository, after a bounded number of tries.
func TestFaultsAlways(t *testing.T) {
	for _, call := range calls {
		for _, fault := range []string{"return-503", "return-429", "return-reset-connection", "return-403", "return-404", "return-418", "html-body", "return-broken-stream-after-0K"} {
			if strings.HasPrefix(call, "HEAD") && (fault == "html-body" || strings.HasPrefix(fault, "return-broken")) {
				continue // the answer to a HEAD has no body
			}
			t.Run(call+" "+fault, func(t *testing.T) {
				t.Parallel()
				s := serve(t, hub.Config{}, hf.Config{Tries: 2})
				s.Plan(on(call), slices.Repeat([]string{fault}, 100)...)
				err := s.all(t.Context())
				if err == nil || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "Signature") {
					t.Fatalf("%v", err)
				}
				if !strings.Contains(err.Error(), "org/tiny") && !strings.Contains(err.Error(), weight) && !strings.Contains(err.Error(), "config.json") &&
					!strings.Contains(err.Error(), "rate limit") && !strings.Contains(err.Error(), s.api.URL) {
					t.Errorf("%v", err)
				}
				if n := len(s.requests()); n > 20 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// TestContinues goes on from the byte that was reached, with no byte asked for twice.
func TestContinues(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{})
	f := s.remote(t, weight)
	s.Plan(on("GET /xet-bridge-us/"), "return-broken-stream-after-64K", "return-broken-stream-after-64K", "return-503", "return-broken-stream-after-1024K")
	got, err := s.read(t.Context(), f, 10, f.Size-10)
	if err != nil || !bytes.Equal(got, s.repo[weight][10:]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	var ranges []string
	for _, r := range s.Server.Requests() {
		if r.Host == "cdn" {
			ranges = append(ranges, r.Range)
		}
	}
	const last = "-1355780"
	if want := []string{"bytes=10" + last, "bytes=65546" + last, "bytes=131082" + last, "bytes=131082" + last, "bytes=1179658" + last}; !slices.Equal(ranges, want) {
		t.Errorf("%q, want %q", ranges, want)
	}
}

// TestDrip gives up on a server that sends a little and closes, each time.
func TestDrip(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{Tries: 3})
	f := s.remote(t, weight)
	s.Plan(on("GET /xet-bridge-us/"), slices.Repeat([]string{"return-broken-stream-after-1K"}, 100)...)
	if _, err := s.read(t.Context(), f, 0, f.Size); err == nil {
		t.Error("a file in drops of 1 KiB")
	}
}

// TestServerWithoutRanges is a mirror that answers with whole files.
func TestServerWithoutRanges(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{Tries: 2})
	f := s.remote(t, weight)
	always := slices.Repeat([]string{"ignore-range"}, 100)
	s.Plan(on("GET /xet-bridge-us/"), always...)
	if got, err := s.read(t.Context(), f, 1<<20, 1000); err != nil || !bytes.Equal(got, s.repo[weight][1<<20:1<<20+1000]) {
		t.Errorf("near the beginning: %d bytes, %v", len(got), err)
	}
	huge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Repo-Commit", commit)
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Length", "1000000000")
			w.WriteHeader(http.StatusOK)
		}
	}))
	defer huge.Close()
	s.Source = source(t, hf.Config{Endpoint: huge.URL, Tries: 2})
	f.Size = 1_000_000_000
	if _, err := s.read(t.Context(), f, 500_000_000, 1000); err == nil || !strings.Contains(err.Error(), "no ranges") {
		t.Errorf("far from the beginning: %v", err)
	}
	f.Size--
	var mismatch *manifest.MismatchError
	if _, err := s.read(t.Context(), f, 0, 1000); !errors.As(err, &mismatch) || mismatch.Sum != "size" {
		t.Errorf("another size: %v", err)
	}
}
