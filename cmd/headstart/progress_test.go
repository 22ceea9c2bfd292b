package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	// A transfer of 1 GB at 100 MB/s.
	transfer := func(g *progress, seconds int) {
		start := time.Now()
		now := func() sample {
			n := min(1_000_000_000, time.Since(start).Milliseconds()*100_000)
			return sample{Done: n, Arrived: n, Total: 1_000_000_000}
		}
		_ = g.During(context.Background(), now, func(context.Context) error {
			time.Sleep(time.Duration(seconds)*time.Second + time.Millisecond)
			return nil
		})
	}
	for _, test := range []struct {
		name    string
		g       progress
		seconds int
		check   func(t *testing.T, out string)
	}{
		{"short", progress{label: "x", style: plain}, 1, func(t *testing.T, out string) {
			if out != "" {
				t.Errorf("shown: %q", out)
			}
		}},
		{"plain", progress{label: "staging x", style: plain}, 8, func(t *testing.T, out string) {
			want := "staging x 200 MB of 1.0 GB  20%  100 MB/s  8s left\nstaging x 700 MB of 1.0 GB  70%  100 MB/s  3s left\n"
			if out != want {
				t.Errorf("got %q\nwant %q", out, want)
			}
		}},
		{"stalled", progress{label: "x", style: plain}, 28, func(t *testing.T, out string) {
			if want := "x 1.0 GB of 1.0 GB  100%  0 B/s  (nothing has arrived for 15s)\n"; !strings.HasSuffix(out, want) {
				t.Errorf("got %q, want it to end in %q", out, want)
			}
		}},
		{"events", progress{style: events}, 4, func(t *testing.T, out string) {
			for line := range strings.Lines(out) {
				var e struct {
					Event        string
					Bytes, Total int64
				}
				if err := json.Unmarshal([]byte(line), &e); err != nil || e.Event != "progress" || e.Bytes == 0 || e.Total != 1e9 {
					t.Errorf("%s: %+v, %v", line, e, err)
				}
			}
			if n := strings.Count(out, "\n"); n != 4 {
				t.Errorf("%d events, want 4", n)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				test.g.out = &out
				transfer(&test.g, test.seconds)
				test.check(t, out.String())
			})
		})
	}
}

func TestBytesOf(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 99_949: "99.9 kB", 99_950: "100 kB", 999_499: "999 kB", 999_500: "1.0 MB", 8_600_158_944: "8.6 GB", 54_864_813_280: "54.9 GB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
