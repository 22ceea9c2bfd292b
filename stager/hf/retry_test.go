package hf_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
)

// TestRetrying is told of every request that is made again, once, with its cause: calls of the API and
// reads of files. (A call whose pooled connection is reset the transport makes again by itself.)
func TestRetrying(t *testing.T) {
	const api, cdn = "GET /api/models/org/tiny/tree/", "GET /xet-bridge-us/"
	for _, test := range []struct {
		on, fault string
		want      stager.Cause
	}{
		{api, `return-429,header=RateLimit:"api";r=0;t=1`, stager.RateLimit},
		{api, "return-503", stager.Status},
		{api, "return-broken-stream-after-0K", stager.Connection},
		{cdn, "return-429", stager.RateLimit},
		{cdn, "return-503", stager.Status},
		{cdn, "return-403", stager.Stale},
		{cdn, "return-reset-connection", stager.Connection},
		{cdn, "return-broken-stream-after-64K", stager.Connection},
		{cdn, "stall-at-256KiB", stager.Stalled},
		{cdn, "stall-always", stager.Stalled},
	} {
		t.Run(test.on+" "+test.fault, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var told []stager.Cause
			var stall time.Duration // the default where nothing stalls: a busy machine does, for a moment
			if test.want == stager.Stalled {
				stall = 150 * time.Millisecond
			}
			s := serve(t, hub.Config{}, hf.Config{Stall: stall, Token: "hf_secret", Retrying: func(r stager.Retry) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, r.Cause)
				if r.Of != "hub" || r.Err == nil || strings.Contains(r.Err.Error(), "Signature") || strings.Contains(r.Err.Error(), "hf_secret") || r.Wait < 0 || r.Wait > time.Second {
					t.Errorf("told of %+v", r)
				}
			}})
			s.Plan(on(test.on), test.fault)
			if err := s.all(t.Context()); err != nil {
				t.Fatal(err)
			}
			if stall > 0 {
				told = slices.Compact(told)
			}
			if want := []stager.Cause{test.want}; !slices.Equal(told, want) {
				t.Errorf("told of %v, want %v", told, want)
			}
		})
	}
}
