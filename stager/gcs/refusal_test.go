package gcs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/gcs"
)

// TestReasons meets every answer that says no: each has its class, and one line that says why.
// Statuses and reasons: https://cloud.google.com/storage/docs/json_api/v1/status-codes
func TestReasons(t *testing.T) {
	for _, test := range []struct {
		status       int
		reason, says string
		class        error
	}{
		{401, "authError", "Invalid Credentials", fs.ErrPermission},
		{403, "forbidden", "stager@acme does not have storage.objects.create access", fs.ErrPermission},
		{403, "insufficientPermissions", "Insufficient Permission", fs.ErrPermission},
		{403, "retentionPolicyNotMet", "Object 'o' is subject to bucket's retention policy", fs.ErrExist},
		{403, "objectUnderActiveHold", "Object 'o' is under active Event-Based hold", fs.ErrExist},
		{403, "accountDisabled", "The billing account for the owning project is disabled in state absent", syscall.EDQUOT},
		{403, "rateLimitExceeded", "The project exceeded the rate limit", syscall.EDQUOT},
		{403, "quotaExceeded", "The project exceeded its quota", syscall.EDQUOT},
		{429, "rateLimitExceeded", "The rate of change requests to the object exceeds the rate limit", syscall.EDQUOT},
		{429, "", "", syscall.EDQUOT},
		{413, "uploadTooLarge", "The upload is too large", syscall.EDQUOT},
		{404, "notFound", "The specified bucket does not exist.", fs.ErrNotExist},
	} {
		t.Run(fmt.Sprint(test.status, test.reason), func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(test.status)
				if test.reason != "" {
					fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"message":%[2]q,"domain":"global","reason":%q}]}}`, test.status, test.says, test.reason)
				}
			}))
			defer server.Close()
			s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL, Wait: time.Millisecond, Attempts: 2})
			must(t, err)
			defer s.Close()
			errs := map[string]error{"Put": s.Put(t.Context(), key, 0, []byte("x"))}
			if test.status != 404 {
				errs["Delete"] = s.Delete(t.Context(), key)
			}
			for _, err := range s.List(t.Context(), dir) {
				errs["List"] = err
			}
			for call, err := range errs {
				if !errors.Is(err, test.class) || !strings.Contains(err.Error(), "models") || test.status != 404 && !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want %v", call, err, test.class)
				}
				for _, other := range []error{fs.ErrPermission, fs.ErrExist, fs.ErrNotExist, syscall.EDQUOT} {
					if other != test.class && errors.Is(err, other) {
						t.Errorf("%s: %v is %v, too", call, err, other)
					}
				}
			}
		})
	}
}

// TestRetrying is told of every request that is made again, once, with its cause.
func TestRetrying(t *testing.T) {
	for _, test := range []struct {
		fault string
		want  stager.Cause
	}{
		{"429", stager.RateLimit},
		{"503", stager.Status},
		{"reset", stager.Connection},
	} {
		t.Run(test.fault, func(t *testing.T) {
			var mu sync.Mutex
			var told []stager.Cause
			met := make(map[string]int)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				met[r.Method]++
				again := met[r.Method] <= 2
				mu.Unlock()
				switch {
				case again && test.fault == "reset":
					panic(http.ErrAbortHandler)
				case again:
					var status int
					fmt.Sscan(test.fault, &status)
					w.WriteHeader(status)
				case r.Method == http.MethodPut:
					w.Header().Set("X-Goog-Generation", "1")
				}
			}))
			defer server.Close()
			s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL, Wait: time.Millisecond, Attempts: 5, Retrying: func(r stager.Retry) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, r.Cause)
				if r.Of != "bucket" || r.Err == nil || strings.Contains(r.Err.Error(), "\n") {
					t.Errorf("told of %+v", r)
				}
			}})
			must(t, err)
			defer s.Close()
			for call, try := range map[string]func() error{
				"Put":    func() error { return s.Put(t.Context(), key, 0, []byte("x")) },
				"Delete": func() error { return s.Delete(t.Context(), key) },
			} {
				told = nil
				if err := try(); err != nil {
					t.Errorf("%s: %v", call, err)
				}
				if want := []stager.Cause{test.want, test.want}; !slices.Equal(told, want) {
					t.Errorf("%s: told of %v, want %v", call, told, want)
				}
			}
		})
	}
}
