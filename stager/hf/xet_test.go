package hf_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
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
)

// serveXet is serve with a Hub that has its large files in Xet alone. Chunks are small; xorbs have 500 KB, so that the
// weight file has three.
func serveXet(t *testing.T, h hub.Config, c hf.Config) *served {
	t.Helper()
	if h.Xet == nil {
		h.Xet = &hub.Xet{Bridge: 1000, Packing: xorb.Config{Chunk: 10_000, Chunks: 50}}
	}
	s := serve(t, h, c)
	cas := httptest.NewServer(s.CAS())
	t.Cleanup(cas.Close)
	s.SetCAS(cas.URL)
	return s
}

// TestXet reads around the edges of chunks and xorbs, of bytes that become smaller when they are packed.
func TestXet(t *testing.T) {
	all := []xorb.Scheme{xorb.Plain, xorb.LZ4, xorb.ByteGroups}
	s := serveXet(t, hub.Config{Xet: &hub.Xet{Bridge: 1000, Packing: xorb.Config{Chunk: 10_000, Chunks: 50, Schemes: all}}}, hf.Config{Token: token})
	for i := range s.repo[weight] {
		if i%4 == 3 {
			s.repo[weight][i] = 0x3f
		}
	}
	f := s.remote(t, weight)
	for _, off := range []int64{0, 1, 9_999, 10_000, 499_999, 500_000, 1_000_001, size - 1} {
		for _, n := range []int64{1, 10_000, 10_001, 500_000, size} {
			n = min(n, size-off)
			got, err := s.read(t.Context(), f, off, n)
			if err != nil || !bytes.Equal(got, s.repo[weight][off:off+n]) {
				t.Errorf("%d bytes from %d: %d bytes, %v", n, off, len(got), err)
			}
		}
	}
	if err := s.all(t.Context()); err != nil {
		t.Error(err)
	}
	for _, r := range s.Server.Requests() {
		if strings.HasPrefix(r.Path, "/xet-bridge-us/") || r.Token != (r.Host != "cdn") {
			t.Errorf("%+v", r)
		}
	}
}

// TestXetBudget is what a file costs: where it is, a token, and for each range a plan and a request for each xorb.
func TestXetBudget(t *testing.T) {
	s := serveXet(t, hub.Config{}, hf.Config{})
	f := s.remote(t, weight)
	s.ResetRequests()
	for off := int64(0); off < size; off += 250_000 {
		if _, err := s.read(t.Context(), f, off, min(250_000, size-off)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, r := range s.requests() {
		host, rest, _ := strings.Cut(r, " ")
		got = append(got, host+" "+strings.Join(strings.SplitN(rest, "/", 5)[:3], "/"))
	}
	slices.Sort(got)
	count := map[string]int{}
	for _, r := range got {
		count[r]++
	}
	// Listing asked for the file already. Six ranges; none crosses from one xorb to another.
	want := map[string]int{"api GET /api/models": 1, "cas GET /v2/reconstructions": 6, "cdn GET /xorbs/default": 6}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", count, want)
	}
}

// xetCalls are the calls that reading over Xet makes.
var xetCalls = []string{"GET /api/models/org/tiny/xet-read-token/", "GET /v2/reconstructions/", "GET /xorbs/default/"}

// TestXetFaultsOnce: what another try mends.
func TestXetFaultsOnce(t *testing.T) {
	for _, call := range append(slices.Clone(xetCalls), "HEAD /org/tiny/resolve/") {
		faults := slices.Clone(mended)
		if !strings.HasPrefix(call, "HEAD") {
			faults = append(faults, bodies...)
		}
		if !strings.HasPrefix(call, "HEAD") && !strings.Contains(call, "/api/") {
			faults = append(faults, "return-401", "return-403", "return-404", "return-410", "html-body", "header=Content-Encoding:gzip")
		}
		if strings.Contains(call, "xorbs") {
			faults = append(faults, "return-broken-stream", "return-broken-stream-after-64K", "return-503-after-256K", "stall-at-256KiB", "ignore-range",
				"header=Content-Range:bytes 5-9/10", "header=Content-Range:nonsense")
		}
		for _, fault := range faults {
			t.Run(call+" "+fault, func(t *testing.T) {
				t.Parallel()
				var c hf.Config
				if strings.HasPrefix(fault, "stall") {
					c.Stall = 300 * time.Millisecond
				}
				s := serveXet(t, hub.Config{}, c)
				s.Plan(on(call), fault)
				if err := s.all(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestXetFaultsAlways ends with an error that names the file, in one line and without a secret.
func TestXetFaultsAlways(t *testing.T) {
	for _, call := range xetCalls {
		for _, fault := range []string{"return-503", "return-429", "return-reset-connection", "return-401", "return-403", "return-404", "return-418", "html-body", "return-broken-stream-after-0K", "header=Content-Encoding:gzip"} {
			if strings.Contains(call, "/api/") && strings.HasPrefix(fault, "header") {
				continue // a document is what it is
			}
			t.Run(call+" "+fault, func(t *testing.T) {
				t.Parallel()
				s := serveXet(t, hub.Config{}, hf.Config{Tries: 2, Token: token})
				if strings.Contains(call, "v2") {
					s.Plan(on("GET /v1/reconstructions/"), slices.Repeat([]string{fault}, 100)...)
				}
				s.Plan(on(call), slices.Repeat([]string{fault}, 100)...)
				err := s.all(t.Context())
				if err == nil || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "Signature") || strings.Contains(err.Error(), token) {
					t.Fatalf("%v", err)
				}
				if !strings.Contains(err.Error(), "org/tiny") && !strings.Contains(err.Error(), weight) && !strings.Contains(err.Error(), "rate limit") && !strings.Contains(err.Error(), s.api.URL) {
					t.Errorf("%v", err)
				}
				if n := len(s.requests()); n > 30 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// TestXetContinues goes on from the byte that was reached: what was planned anew begins there.
func TestXetContinues(t *testing.T) {
	s := serveXet(t, hub.Config{Xet: &hub.Xet{Bridge: 1, Packing: xorb.Config{Chunk: 64 << 10}}}, hf.Config{})
	f := s.remote(t, weight)
	s.Plan(on("GET /xorbs/"), "return-broken-stream-after-512K", "return-503", "", "return-broken-stream-after-0K")
	got, err := s.read(t.Context(), f, 10, f.Size-10)
	if err != nil || !bytes.Equal(got, s.repo[weight][10:]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	var ranges []string
	for _, r := range s.Server.Requests() {
		if r.Host == "cas" {
			ranges = append(ranges, r.Range)
		}
	}
	// 512 KiB of the answer are seven chunks and a part of the eighth.
	if want := []string{"bytes=10-1355780", "bytes=458752-1355780", "bytes=458752-1355780"}; !slices.Equal(ranges, want) {
		t.Errorf("%q, want %q", ranges, want)
	}
}

// TestXetExpires moves the Hub's clock on, so that the token is no longer good, and the URLs are not.
func TestXetExpires(t *testing.T) {
	for _, life := range []time.Duration{0, time.Minute / 2} { // the second is shorter than what a token is replaced before its end
		var late atomic.Int64 // nanoseconds
		s := serveXet(t, hub.Config{Signed: life, Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) }}, hf.Config{})
		f := s.remote(t, weight)
		r, err := s.Source.Open(t.Context(), model, f, 0, f.Size)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, f.Size)
		for at := range 14 {
			p := got[at*100_000 : min((at+1)*100_000, len(got))]
			for n := 0; n < len(p); {
				m, err := r.Read(p[n:])
				if n += m; err != nil {
					t.Fatalf("%v after %d bytes, late by %v", err, at*100_000+n, time.Duration(late.Load()))
				}
			}
			late.Add(int64(time.Hour / 3))
		}
		r.Close()
		if !bytes.Equal(got, s.repo[weight]) {
			t.Error("other bytes")
		}
		asked := 0
		for _, r := range s.requests() {
			if strings.Contains(r, "xet-read-token") {
				asked++
			}
		}
		if asked < 2 || asked > 4 {
			t.Errorf("asked for a token %d times", asked)
		}
	}
}

// TestWhenXet tells when a file comes from Xet.
func TestWhenXet(t *testing.T) {
	bridged, only := &hub.Xet{Bridge: 1 << 30}, &hub.Xet{Bridge: 1}
	for name, c := range map[string]struct {
		xet   *hub.Xet
		above int64
		off   bool
		want  string // part of a path, or of an error
	}{
		"small enough":       {xet: bridged, want: "/xet-bridge-us/"},
		"as large as can be": {xet: bridged, above: size, want: "/xet-bridge-us/"},
		"too large":          {xet: bridged, above: size - 1, want: "/xorbs/"},
		"no bridge":          {xet: only, want: "/xorbs/"},
		"off":                {xet: bridged, off: true, want: "/xet-bridge-us/"},
		"off, too large":     {xet: bridged, above: size - 1, off: true, want: "through Xet alone: unset HF_HUB_DISABLE_XET"},
		"off, no bridge":     {xet: only, off: true, want: "through Xet alone: unset HF_HUB_DISABLE_XET"},
		"a Hub without Xet":  {above: 1, want: "/xet-bridge-us/"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, hub.Config{Xet: c.xet}, hf.Config{XetAbove: c.above, DisableXet: c.off})
			cas := httptest.NewServer(s.CAS())
			defer cas.Close()
			s.SetCAS(cas.URL)
			err := s.all(t.Context())
			if err != nil {
				if !strings.Contains(err.Error(), c.want) || !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("%v, want %q", err, c.want)
				}
				return
			}
			var from []string
			for _, r := range s.requests() {
				if strings.HasPrefix(r, "cdn") {
					from = append(from, r)
				}
			}
			if len(from) == 0 || !strings.Contains(from[0], c.want) {
				t.Errorf("%q, want %q", from, c.want)
			}
		})
	}
}

// TestXetTokenGoesNowhereElse has a Hub, or somebody before it, name another host as the one that gives tokens.
func TestXetTokenGoesNowhereElse(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s with %v", r.URL, r.Header)
	}))
	defer other.Close()
	link := func(url string) string {
		return "header=Link:" + strings.NewReplacer(",", "%2C", "/", "%2F", ":", "%3A").Replace(`<`+url+`>; rel="xet-auth"`)
	}
	for name, c := range map[string]struct{ fault, want string }{
		"another host":    {link(other.URL + "/api/models/org/tiny/xet-read-token/x"), "to another host"},
		"no host":         {link("/api/models/org/tiny/xet-read-token/x"), "to another host"},
		"nobody":          {"header=Link:", "names no place"},
		"no hash":         {"header=X-Xet-Hash:nonsense", "names no place"},
		"a hash too long": {"header=X-Xet-Hash:..%2F..%2F" + strings.Repeat("0", 58), "names no place"},
		"the real Hub's":  {link("https://huggingface.co/api/models/org/tiny/xet-read-token/" + commit), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveXet(t, hub.Config{}, hf.Config{Token: token})
			s.Plan(on("HEAD /org/tiny/resolve/"), c.fault)
			err := s.all(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestXetCorrupted: a flipped bit in packed bytes is mostly noticed and mended; in plain ones it is the stager's to find.
func TestXetCorrupted(t *testing.T) {
	for _, c := range []struct {
		scheme xorb.Scheme
		chunk  int
	}{{xorb.LZ4, 0}, {xorb.ByteGroups, 0}, {xorb.Plain, 1000}} {
		s := serveXet(t, hub.Config{Xet: &hub.Xet{Bridge: 1, Packing: xorb.Config{Chunk: c.chunk, Schemes: []xorb.Scheme{c.scheme}}}}, hf.Config{})
		f := s.remote(t, weight)
		s.Plan(on("GET /xorbs/"), "return-corrupted-data")
		got, err := s.read(t.Context(), f, 0, f.Size)
		if err != nil || len(got) != len(s.repo[weight]) {
			t.Errorf("%v: %d bytes, %v", c, len(got), err)
		}
	}
}

// TestXetWaits as long as the store, or the host of a xorb, asks for.
func TestXetWaits(t *testing.T) {
	for _, call := range []string{"GET /v2/reconstructions/", "GET /xorbs/"} {
		var log strings.Builder
		s := serveXet(t, hub.Config{}, hf.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		f := s.remote(t, weight)
		s.Plan(on(call), "return-503,header=Retry-After:1")
		if _, err := s.read(t.Context(), f, 0, f.Size); err != nil || !strings.Contains(log.String(), "asks to wait") {
			t.Errorf("%s: %v, %q", call, err, log.String())
		}
	}
}

// TestXetKnowsLess is a store that says the file is shorter.
func TestXetKnowsLess(t *testing.T) {
	s := serveXet(t, hub.Config{}, hf.Config{})
	f := s.remote(t, weight)
	s.Plan(on("GET /v2/"), "return-416")
	var mismatch *manifest.MismatchError
	if _, err := s.read(t.Context(), f, 0, f.Size); !errors.As(err, &mismatch) || mismatch.Path != weight {
		t.Error(err)
	}
}

// TestXetWrongClock is a machine whose clock is hours ahead: every token seems to have ended.
func TestXetWrongClock(t *testing.T) {
	s := serveXet(t, hub.Config{Now: func() time.Time { return time.Now().Add(-3 * time.Hour) }}, hf.Config{})
	f := s.remote(t, weight)
	for range 5 {
		if _, err := s.read(t.Context(), f, 0, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(strings.Join(s.requests(), "\n"), "xet-read-token"); n != 1 {
		t.Errorf("asked for a token %d times", n)
	}
}

// TestMirrorOfXet passes on what the Hub says of Xet and has the bytes itself.
func TestMirrorOfXet(t *testing.T) {
	data := bytes.Repeat([]byte("mirror"), 100)
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Repo-Commit", commit)
		w.Header().Set("X-Xet-Hash", strings.Repeat("0", 64))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer mirror.Close()
	s := &served{Source: source(t, hf.Config{Endpoint: mirror.URL})}
	f := stager.RemoteFile{Path: weight, Size: int64(len(data)), SHA256: new(manifest.Digest)}
	if got, err := s.read(t.Context(), f, 0, f.Size); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
