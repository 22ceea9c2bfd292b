package hf_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/hub"
)

func TestListing(t *testing.T) {
	for _, page := range []int{0, 1, 2} {
		s := serve(t, hub.Config{PageSize: page}, hf.Config{})
		snapshot, err := s.Source.Resolve(t.Context(), "org/tiny", "")
		if err != nil || snapshot.Model != model || snapshot.Ref != "main" {
			t.Fatalf("%+v, %v", snapshot, err)
		}
		files, err := s.Source.Files(t.Context(), model)
		if err != nil || len(files) != len(s.repo) {
			t.Fatalf("%+v, %v", files, err)
		}
		for _, f := range files {
			if f.Size != int64(len(s.repo[f.Path])) || (f.SHA256 != nil) != (f.Path == weight) || (f.GitSHA1 == "") != (f.Path == weight) {
				t.Errorf("%+v", f)
			}
		}
	}
}

// TestBudget counts the requests of a whole model: info; access, tree; one HEAD a file, one GET a range.
func TestBudget(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{})
	if err := s.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(t.Context(), s.remote(t, weight), 7, 100); err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for _, r := range s.requests() {
		host, rest, _ := strings.Cut(r, " ")
		method, path, _ := strings.Cut(rest, " ")
		kind := "file"
		for _, k := range []string{"/revision/", "/auth-check/", "/tree/", "/resolve/", "/resolve-cache/"} {
			if strings.Contains(path+"/", k) {
				kind = strings.Trim(k, "/")
			}
		}
		count[host+" "+method+" "+kind]++
	}
	want := map[string]int{"api GET revision": 1, "api GET auth-check": 2, "api GET tree": 2, "api HEAD resolve": 3, "api GET resolve-cache": 2, "cdn GET file": 2}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", count, want)
	}
	if snapshot, err := s.Source.Resolve(t.Context(), "org/tiny", commit); err != nil || snapshot.Model != model || snapshot.Ref != "" {
		t.Errorf("a commit: %+v, %v", snapshot, err)
	}
	if n := len(s.requests()); n != 12 {
		t.Errorf("resolving a commit makes %d requests", n-12)
	}
}

// TestRanges reads at the edges of a large and a small file.
func TestRanges(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{})
	for _, path := range []string{weight, "config.json", "sub/a b#%?ü.txt"} {
		f, data := s.remote(t, path), s.repo[path]
		n := int64(len(data))
		for _, r := range [][2]int64{{0, 1}, {0, n}, {1, n - 1}, {n - 1, 1}, {n / 2, n / 3}} {
			if got, err := s.read(t.Context(), f, r[0], r[1]); err != nil || !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
				t.Errorf("%s from %d: %d bytes of %d, %v", path, r[0], len(got), r[1], err)
			}
		}
	}
}

// TestOneLocation asks the Hub once where a file is, however many ranges are read at once.
func TestOneLocation(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{})
	f := s.remote(t, weight)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.read(t.Context(), f, int64(i)*1000, 1000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	heads := 0
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "api HEAD ") {
			heads++
		}
	}
	if heads != 1 {
		t.Errorf("%d questions", heads)
	}
}

// TestTokenStaysHome looks at every request: the token is on the API's and never on the CDN's.
func TestTokenStaysHome(t *testing.T) {
	s := serve(t, hub.Config{Policies: map[string]hub.Policy{"org/tiny": {Gated: "manual", Granted: []string{"user"}}}}, hf.Config{Token: token})
	s.Plan(on("GET /xet-bridge-us/"), "return-403", "return-503", "return-broken-stream-after-64K")
	if err := s.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Server.Requests() {
		if r.Token != (r.Host == "api") {
			t.Errorf("%+v", r)
		}
	}
}

// TestTokenAndRedirects redirects every kind of request to another host, by every status.
func TestTokenAndRedirects(t *testing.T) {
	var mu sync.Mutex
	var leaked []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), token) {
				leaked = append(leaked, r.URL.Path+" "+name)
			}
		}
		http.Error(w, "nothing", http.StatusNotFound)
	}))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := serve(t, hub.Config{}, hf.Config{Token: token})
		f := s.remote(t, weight)
		away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Repo-Commit", commit)
			http.Redirect(w, r, other.URL+r.URL.Path, status)
		}))
		defer away.Close()
		s.Source = source(t, hf.Config{Endpoint: away.URL, Token: token})
		if _, err := s.Source.Resolve(t.Context(), "org/tiny", "main"); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%d: info: %v", status, err)
		}
		if _, err := s.Source.Files(t.Context(), model); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%d: tree: %v", status, err)
		}
		if _, err := s.read(t.Context(), f, 0, 10); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%d: file: %v", status, err)
		}
	}
	if len(leaked) > 0 {
		t.Errorf("the token was sent: %q", leaked)
	}
}

// TestExpiredURL lets the signed URL expire between two ranges.
func TestExpiredURL(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := serve(t, hub.Config{Now: clock, Signed: time.Minute}, hf.Config{})
	f := s.remote(t, weight)
	for i := range int64(3) {
		if got, err := s.read(t.Context(), f, i, 1000); err != nil || !bytes.Equal(got, s.repo[weight][i:i+1000]) {
			t.Fatal(err)
		}
		mu.Lock()
		now = now.Add(time.Hour)
		mu.Unlock()
	}
	heads := slices.DeleteFunc(s.requests(), func(r string) bool { return !strings.HasPrefix(r, "api HEAD ") })
	if len(heads) != 3 {
		t.Errorf("%d questions where the file is: %q", len(heads), heads)
	}
}

// TestCancelled ends a read that stalls.
func TestCancelled(t *testing.T) {
	s := serve(t, hub.Config{}, hf.Config{})
	f := s.remote(t, weight)
	s.Plan(on("GET /xet-bridge-us/"), "stall-at-256KiB")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	reason := errors.New("told to stop")
	r, err := s.Source.Open(ctx, model, f, 0, f.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := 0
	for err == nil {
		var m int
		m, err = r.Read(make([]byte, 64<<10))
		if n += m; n == 256<<10 {
			cancel(reason)
		}
	}
	if n != 256<<10 || !errors.Is(err, reason) {
		t.Errorf("after %d bytes: %v", n, err)
	}
	if _, err := s.Source.Resolve(ctx, "org/tiny", ""); !errors.Is(err, reason) {
		t.Errorf("Resolve: %v", err)
	}
	if _, err := s.Source.Files(ctx, model); !errors.Is(err, reason) {
		t.Errorf("Files: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []hf.Config{
		{Endpoint: "huggingface.co"}, {Endpoint: "ftp://huggingface.co"}, {Endpoint: "https://"}, {Endpoint: "https://u:p@h"}, {Endpoint: "https://h/?x"}, {Endpoint: "http://\x00"},
		{Token: "hf_a\nX-Evil: 1"}, {Token: "hf a"}, {Token: "hf_ü"},
	} {
		if _, err := hf.New(c); err == nil || c.Token != "" && strings.Contains(err.Error(), c.Token) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	s, err := hf.New(hf.Config{})
	if err != nil || s.Endpoint != "https://huggingface.co" {
		t.Errorf("the default: %v, %v", s, err)
	}
	if _, err := s.Resolve(t.Context(), "../x", ""); !errors.Is(err, manifest.ErrInvalid) {
		t.Error(err)
	}
	if _, err := s.Resolve(t.Context(), "a/b", "x y"); !errors.Is(err, manifest.ErrInvalid) {
		t.Error(err)
	}
}
