package gcs_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager/gcs"
)

// TestHostileAnswers does not follow a redirect, and reads no more of an error than it needs.
func TestHostileAnswers(t *testing.T) {
	var others, sent atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { others.Add(1) }))
	defer other.Close()
	const long = 64 << 20
	for name, handler := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		},
		"long error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			for n := 0; n < long; n += 64 << 10 {
				m, err := io.WriteString(w, strings.Repeat("x", 64<<10))
				if sent.Add(int64(m)); err != nil {
					return
				}
			}
		},
		"long header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 128<<10))
			io.WriteString(w, "content")
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(handler)
			defer server.Close()
			s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL, Wait: time.Millisecond, Attempts: 2})
			must(t, err)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, _, getErr := s.Get(ctx, key, 100)
			errs := map[string]error{"Get": getErr, "Put": s.Put(ctx, key, 0, []byte("x")), "Delete": s.Delete(ctx, key)}
			for _, err := range s.List(ctx, dir) {
				errs["List"] = err
			}
			for call, err := range errs {
				if err == nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
					t.Errorf("%s: %.2000v", call, err)
				}
			}
			if len(errs) != 4 {
				t.Error("List succeeds")
			}
		})
	}
	if others.Load() != 0 {
		t.Errorf("the other host is asked %d times", others.Load())
	}
	if sent.Load() > 4*long/2 {
		t.Errorf("%d bytes of errors are read", sent.Load())
	}
}
