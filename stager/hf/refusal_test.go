package hf_test

import (
	"errors"
	"io/fs"
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

// TestRefusals is what a person gets to read, for each of the Hub's errors.
func TestRefusals(t *testing.T) {
	policy := func(p hub.Policy) hub.Config {
		return hub.Config{Policies: map[string]hub.Policy{"org/tiny": p}, Tokens: map[string]string{token: "user", "hf_other": "other"}}
	}
	granted := []string{"user"}
	for _, test := range []struct {
		name           string
		hub            hub.Config
		token          string
		repo, revision string
		class          error
		text           []string
	}{
		{"missing, no token", policy(hub.Policy{}), "", "org/none", "", fs.ErrNotExist, []string{"org/none does not exist", "set HF_TOKEN"}},
		{"missing, token", policy(hub.Policy{}), token, "org/none", "", fs.ErrNotExist, []string{"org/none does not exist", "check the name"}},
		{"private, no token", policy(hub.Policy{Private: true, Granted: granted}), "", "org/tiny", "", fs.ErrNotExist, []string{"or is private", "set HF_TOKEN"}},
		{"private, another's token", policy(hub.Policy{Private: true, Granted: granted}), "hf_other", "org/tiny", "", fs.ErrNotExist, []string{"this token may not see it"}},
		{"revision", policy(hub.Policy{}), "", "org/tiny", "v9", fs.ErrNotExist, []string{`no revision "v9"`, "/org/tiny/commits"}},
		{"commit", policy(hub.Policy{}), "", "org/tiny", strings.Repeat("f", 40), fs.ErrNotExist, []string{"no revision", strings.Repeat("f", 40)}},
		{"gated, no token", policy(hub.Policy{Gated: "manual", Granted: granted}), "", "org/tiny", "", fs.ErrPermission, []string{"is gated", "/org/tiny and accept the licence", "set HF_TOKEN"}},
		{"gated, another's token", policy(hub.Policy{Gated: "auto", Granted: granted}), "hf_other", "org/tiny", "", fs.ErrPermission, []string{"is gated", "not on its list", "/org/tiny and accept the licence"}},
		{"gated, nobody's token", policy(hub.Policy{Gated: "auto", Granted: granted}), "hf_nonsense", "org/tiny", commit, fs.ErrPermission, []string{"is gated", "does not know this token", "/org/tiny and accept the licence", "/settings/tokens"}},
		{"gated, a commit", policy(hub.Policy{Gated: "auto", Granted: granted}), "", "org/tiny", commit, fs.ErrPermission, []string{"is gated", "/org/tiny and accept the licence"}},
		{"disabled", policy(hub.Policy{Disabled: true}), "", "org/tiny", "", fs.ErrPermission, []string{"disabled"}},
		{"bad token", policy(hub.Policy{}), "hf_nonsense", "org/tiny", "", fs.ErrPermission, []string{"does not know this token", "/settings/tokens", "HF_TOKEN"}},
		{"rate limit", policy(hub.Policy{Limited: true}), "", "org/tiny", "", nil, []string{"rate limit", "HF_TOKEN"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, test.hub, hf.Config{Token: test.token})
			snapshot, err := s.Source.Resolve(t.Context(), test.repo, test.revision)
			if err == nil {
				_, err = s.Source.Files(t.Context(), snapshot.Model)
			}
			if err == nil || test.class != nil && !errors.Is(err, test.class) {
				t.Fatalf("%v", err)
			}
			for _, want := range test.text {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") || test.token != "" && strings.Contains(err.Error(), test.token) {
				t.Errorf("%q", err)
			}
			for _, r := range s.requests() {
				if strings.HasPrefix(r, "cdn ") {
					t.Errorf("a byte was asked for: %s", r)
				}
				if errors.Is(err, fs.ErrPermission) && strings.Contains(r, "/tree/") {
					t.Errorf("listed before access was asked for: %s", r)
				}
			}
		})
	}
}

// mirror answers the question of access by itself, as a Hub that lacks it does.
type mirror struct {
	http.RoundTripper
	status int
}

func (m mirror) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/auth-check") {
		return &http.Response{StatusCode: m.status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	}
	return m.RoundTripper.RoundTrip(r)
}

// TestMirrorWithoutAccessCheck serves an open repository, and tells of a gated one by its largest file.
func TestMirrorWithoutAccessCheck(t *testing.T) {
	for _, status := range []int{200, 400, 404, 405, 501} {
		wrap := func(next http.RoundTripper) http.RoundTripper { return mirror{next, status} }
		open := serve(t, hub.Config{}, hf.Config{Wrap: wrap})
		if err := open.all(t.Context()); err != nil {
			t.Errorf("%d: %v", status, err)
		}
		gated := serve(t, hub.Config{Policies: map[string]hub.Policy{"org/tiny": {Gated: "auto"}}}, hf.Config{Wrap: wrap})
		if err := gated.all(t.Context()); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "accept the licence") {
			t.Errorf("%d: gated: %v", status, err)
		}
	}
}

// TestGatedFilesOfAGrantedUser are staged.
func TestGatedFilesOfAGrantedUser(t *testing.T) {
	s := serve(t, hub.Config{Tokens: map[string]string{token: "user"}, Policies: map[string]hub.Policy{"org/tiny": {Gated: "manual", Granted: []string{"user"}}}}, hf.Config{Token: token})
	if err := s.all(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestHostileListings names the entry that is wrong.
func TestHostileListings(t *testing.T) {
	for fault, want := range map[string]string{
		"file-in-tree=..%2F..%2Fetc%2Fpasswd":          `"../../etc/passwd"`,
		"file-in-tree=%2Fetc%2Fpasswd":                 `"/etc/passwd"`,
		"file-in-tree=a%00b":                           `"a\x00b"`,
		"file-in-tree=a%0Ab":                           `"a\nb"`,
		"file-in-tree=a%5Cb":                           `"a\\b"`,
		"file-in-tree=.headstart%2Fx":                  `".headstart/x"`,
		"file-in-tree=" + strings.Repeat("a", 5000):    "5000 bytes",
		"type-in-tree=symlink":                         `"symlink"`,
		"size-in-tree=-1":                              `"-1"`,
		"size-in-tree=9223372036854775808":             `"9223372036854775808"`,
		"size-in-tree=1e3":                             `"1e3"`,
		"loop-in-tree":                                 "no end",
		"html-body":                                    "not the JSON of a Hub",
		"endless-body":                                 "more than",
		"header=Link:<https://evil.example>; rel=next": "another host",
	} {
		t.Run(fault[:min(len(fault), 40)], func(t *testing.T) {
			s := serve(t, hub.Config{PageSize: 2}, hf.Config{Token: token})
			s.Plan(on("/tree/"), slices.Repeat([]string{fault}, 10)...)
			_, err := s.Source.Files(t.Context(), model)
			if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600 {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestLies is a Hub that contradicts itself about the file.
func TestLies(t *testing.T) {
	other := strings.Repeat("2", 40)
	for _, test := range []struct {
		name, on, fault string
		mismatch        bool
		text            string
	}{
		{"commit of resolve", "HEAD /org/tiny/resolve/", "wrong-commit", false, "not from " + commit},
		{"no commit", "HEAD /org/tiny/resolve/", "header=X-Repo-Commit:", false, ""},
		{"size of resolve", "HEAD /org/tiny/resolve/", "header=X-Linked-Size:17", true, "size 17"},
		{"etag of resolve", "HEAD /org/tiny/resolve/", "header=X-Linked-Etag:\"" + strings.Repeat("0", 64) + "\"", true, "sha256 is 000"},
		{"location of resolve", "HEAD /org/tiny/resolve/", "header=Location:ftp://h/x", false, "not a web address"},
		{"size of the CDN", "GET /xet-bridge-us/", "header=Content-Range:bytes 0-1355780/17", true, "size 17"},
		{"commit of a small file", "GET /api/resolve-cache/", "header=X-Repo-Commit:" + other, false, "not from " + commit},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, hub.Config{}, hf.Config{})
			s.Plan(on(test.on), test.fault)
			err := s.all(t.Context())
			var mismatch *manifest.MismatchError
			if test.mismatch != errors.As(err, &mismatch) || !test.mismatch && !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	s := source(t, hf.Config{Endpoint: dead.URL, Token: token})
	if _, err := s.Resolve(t.Context(), "org/tiny", ""); err == nil || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), dead.URL) {
		t.Errorf("%v", err)
	}
	// The address of a CDN is a secret: whoever has it can read the file.
	h := serve(t, hub.Config{}, hf.Config{Tries: 1})
	f := h.remote(t, weight)
	h.cdn.Close()
	if _, err := h.read(t.Context(), f, 0, 1); err == nil || strings.Contains(err.Error(), "Signature") || !strings.Contains(err.Error(), weight) {
		t.Errorf("%v", err)
	}
}

// TestEndpointThatIsNoHub asks a server that answers everything with a page.
func TestEndpointThatIsNoHub(t *testing.T) {
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte("<html>Log in to this network</html>"))
	}))
	defer portal.Close()
	s := source(t, hf.Config{Endpoint: portal.URL, Stall: time.Second})
	if _, err := s.Resolve(t.Context(), "org/tiny", ""); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "HF_ENDPOINT") {
		t.Errorf("%v", err)
	}
}
