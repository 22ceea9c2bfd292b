package hub_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager/hub"
)

func named(name string) memory { r := tiny(); r.name = name; return r }

// guarded is a Hub with one repository of each policy and two users.
func guarded(t *testing.T) *served {
	return serve(t, hub.Config{
		Tokens: map[string]string{"good": "ann", "poor": "bob"},
		Policies: map[string]hub.Policy{
			"org/gated":    {Gated: "manual", Granted: []string{"ann"}},
			"org/private":  {Private: true, Granted: []string{"ann"}},
			"org/disabled": {Disabled: true},
			"org/limited":  {Limited: true},
		},
	}, tiny(), named("org/gated"), named("org/private"), named("org/disabled"), named("org/limited"))
}

const (
	noCredentials  = "Invalid username or password."
	badCredentials = "Invalid credentials in Authorization header"
	gatedLogIn     = "Access to model org/gated is restricted. You must have access to it and be authenticated to access it. Please log in."
	gatedAsk       = "Access to model org/gated is restricted and you are not in the authorized list. Visit https://huggingface.co/org/gated to ask for access."
)

// TestErrors has a line for each row of what the Hub refuses, and for its neighbours that it does not.
func TestErrors(t *testing.T) {
	s := guarded(t)
	for _, c := range []struct {
		path, token   string
		status        int
		code, message string
	}{
		{"/api/models/org/none", "", 401, "RepoNotFound", noCredentials},
		{"/api/models/org/none", "garbage", 401, "RepoNotFound", noCredentials},
		{"/api/models/org/none", "good", 404, "RepoNotFound", "Repository not found"},
		{"/org/none/resolve/main/config.json", "", 401, "RepoNotFound", noCredentials},
		{"/org/none/resolve/main/config.json", "good", 404, "RepoNotFound", "Repository not found"},

		{"/api/models/org/tiny/revision/none", "", 404, "RevisionNotFound", "Invalid rev id: none"},
		{"/api/models/org/tiny/tree/refs%2Fpr%2F7", "", 404, "RevisionNotFound", "Invalid rev id: refs/pr/7"},
		{"/org/tiny/resolve/none/config.json", "", 404, "RevisionNotFound", "Invalid rev id: none"},
		{"/org/tiny/resolve/main/none", "", 404, "EntryNotFound", "Entry not found: none"},
		{"/api/models/org/tiny/tree/main/none", "", 404, "EntryNotFound", "Entry not found: none"},

		{"/api/models/org/gated", "", 200, "", ""},
		{"/api/models/org/gated/tree/main", "", 200, "", ""},
		{"/api/models/org/gated/auth-check", "", 401, "GatedRepo", gatedLogIn},
		{"/api/models/org/gated/auth-check", "poor", 403, "GatedRepo", gatedAsk},
		{"/api/models/org/gated/auth-check", "good", 200, "", ""},
		{"/org/gated/resolve/main/config.json", "", 401, "GatedRepo", gatedLogIn},
		{"/org/gated/resolve/main/config.json", "garbage", 401, "GatedRepo", gatedLogIn},
		{"/org/gated/resolve/main/config.json", "poor", 403, "GatedRepo", gatedAsk},
		{"/org/gated/resolve/main/config.json", "good", 307, "", ""},
		{"/org/gated/resolve/main/model.safetensors", "poor", 403, "GatedRepo", gatedAsk},
		{"/org/gated/resolve/main/model.safetensors", "good", 302, "", ""},
		{"/api/resolve-cache/models/org/gated/" + commit1 + "/config.json", "poor", 403, "GatedRepo", gatedAsk},

		{"/api/models/org/private", "", 401, "RepoNotFound", noCredentials},
		{"/api/models/org/private", "poor", 404, "RepoNotFound", "Repository not found"},
		{"/api/models/org/private", "good", 200, "", ""},
		{"/org/private/resolve/main/config.json", "poor", 404, "RepoNotFound", "Repository not found"},

		{"/api/models/org/disabled", "good", 403, "", "Access to this resource is disabled."},
		{"/org/disabled/resolve/main/config.json", "", 403, "", "Access to this resource is disabled."},

		{"/api/models/org/tiny", "garbage", 401, "", badCredentials},
		{"/org/tiny/resolve/main/config.json", "garbage", 401, "", badCredentials},
		{"/api/whoami-v2", "garbage", 401, "", badCredentials},
		{"/api/whoami-v2", "", 401, "", noCredentials},
		{"/api/whoami-v2", "good", 200, "", ""},
		{"/api/models/org/tiny/auth-check", "good", 200, "", ""},
		{"/api/models/org/tiny/auth-check/write", "good", 403, "", "This Hub is read-only"},

		{"/api/models/org/limited", "good", 429, "", "We had to rate limit you."},
		{"/org/limited/resolve/main/config.json", "good", 429, "", "We had to rate limit you."},

		{"/api/agent-harnesses", "", 404, "", "Sorry, we can't find the page you are looking for."},
		{"/api/models/org/tiny/paths-info/main", "", 405, "", "Method not allowed"},
		{"/api/resolve-cache/models/org/tiny/main/config.json", "", 404, "", "Sorry, we can't find the page you are looking for."},
		{"/api/resolve-cache/models/org/tiny/" + commit1 + "/model.safetensors", "", 404, "EntryNotFound", "Entry not found: model.safetensors"},
		{"/api/models/org/tiny?blobs=true&expand=sha", "", 400, "", "blobs and expand exclude each other"},
		{"/api/models/org/tiny/tree/main?cursor=%00", "", 400, "", "Invalid cursor"},
		{"/org/tiny/resolve/main/..%2F..%2Fetc%2Fpasswd", "", 404, "EntryNotFound", "Entry not found: ../../etc/passwd"},
		{"/org/tiny/resolve/main/a%0Ab", "", 404, "EntryNotFound", "Entry not found: a?b"},
	} {
		var headers []string
		if c.token != "" {
			headers = []string{"Authorization", "Bearer " + c.token}
		}
		for _, method := range []string{"GET", "HEAD"} {
			r := s.ask(method, c.path, headers...)
			r.expect(t, c.status, "X-Error-Code", c.code, "X-Error-Message", c.message)
			if challenge := strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer "); challenge != (c.status == 401) {
				t.Errorf("%s: WWW-Authenticate %q with status %d", c.path, r.Header.Get("WWW-Authenticate"), c.status)
			}
			if commit := r.Header.Get("X-Repo-Commit"); c.code == "EntryNotFound" && commit != commit1 {
				t.Errorf("%s: X-Repo-Commit %q of a missing entry", c.path, commit)
			}
			if method == "GET" && c.status >= 400 {
				var body struct{ Error string }
				if r.decode(t, &body); body.Error == "" {
					t.Errorf("%s: no error in the body %s", c.path, r.body)
				}
			}
		}
	}
	s.ask("DELETE", "/api/models/org/tiny").expect(t, 405)
	s.ask("POST", "/org/tiny/resolve/main/config.json").expect(t, 405)
}

func TestOverHTTPSAMissingRepositoryHasNoCode(t *testing.T) {
	w := newSink()
	r := getRequest(t, "https://hub/api/models/org/none")
	r.TLS = &tls.ConnectionState{}
	hub.New(hub.Config{}).Handler().ServeHTTP(w, r)
	if code := w.header.Get("X-Error-Code"); w.status != 401 || code != "" {
		t.Errorf("status %d, X-Error-Code %q", w.status, code)
	}
}

func TestWithoutTokensEveryTokenIsGood(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	s.get("/api/whoami-v2", "Authorization", "Bearer x").expect(t, 200)
	s.get("/api/whoami-v2", "Authorization", "Basic x").expect(t, 401, "X-Error-Message", badCredentials)
	s.get("/api/whoami-v2", "Authorization", "Bearer ").expect(t, 401)
}

func TestEveryAnswerTellsTheQuota(t *testing.T) {
	now := time.Unix(1_760_000_000, 0).Truncate(time.Minute).Add(10 * time.Second)
	s := serve(t, hub.Config{
		Quota:  hub.Quota{API: 2, Resolvers: 1, Pages: 3, Window: time.Minute},
		Now:    func() time.Time { return now },
		Tokens: map[string]string{"good": "ann"},
	}, tiny())
	quota := func(path string, status int, class string, left, limit int, headers ...string) {
		t.Helper()
		s.get(path, headers...).expect(t, status,
			"RateLimit", fmt.Sprintf(`"%s";r=%d;t=50`, class, left),
			"RateLimit-Policy", fmt.Sprintf(`"fixed window";"%s";q=%d;w=60`, class, limit))
	}
	quota("/api/models/org/tiny", 200, "api", 1, 2)
	quota("/api/models/org/none", 401, "api", 0, 2)
	quota("/api/models/org/tiny", 429, "api", 0, 2)
	quota("/api/models/org/tiny", 200, "api", 1, 2, "Authorization", "Bearer good") // a user has his own
	quota("/org/tiny/resolve/main/config.json", 307, "resolvers", 0, 1)
	quota("/api/resolve-cache/models/org/tiny/"+commit1+"/config.json", 429, "resolvers", 0, 1)
	quota("/", 200, "pages", 2, 3)
	now = now.Add(49 * time.Second)
	s.get("/api/models/org/tiny").expect(t, 429, "RateLimit", `"api";r=0;t=1`)
	now = now.Add(time.Second)
	s.get("/api/models/org/tiny").expect(t, 200, "RateLimit", `"api";r=1;t=60`)

	g := guarded(t)
	g.get("/org/limited/resolve/main/config.json").expect(t, 429)
	if got := g.get("/org/limited/resolve/main/config.json").Header.Get("RateLimit"); !strings.HasPrefix(got, `"resolvers";r=0;t=`) {
		t.Errorf("RateLimit of a limited repository: %q", got)
	}
}

func TestANameWithOtherCasesIsRedirected(t *testing.T) {
	s := guarded(t)
	s.get("/api/models/Org/TINY/revision/main?blobs=true").expect(t, 307, "Location", "/api/models/org/tiny/revision/main?blobs=true")
	s.get("/ORG/tiny/resolve/main/config.json").expect(t, 307, "Location", "/org/tiny/resolve/main/config.json")
}

func TestALegacyNameHasNoOwner(t *testing.T) {
	s := serve(t, hub.Config{}, named("gpt2"))
	s.get("/api/models/gpt2").expect(t, 200)
	s.get("/api/models/gpt2/tree/main").expect(t, 200)
	r := s.get("/gpt2/resolve/main/config.json")
	r.expect(t, 307, "X-Repo-Commit", commit1)
	s.get(r.Header.Get("Location")).expect(t, 200)
	s.get("/gpt2/resolve/main/model.safetensors").expect(t, 302)
}

func FuzzAPIPath(f *testing.F) {
	for _, p := range []string{"/", "//", "/api/models/", "/api/models/a/b/tree/%2F", "/api/resolve-cache/models/a/b/c", "/org/tiny/resolve/main/", "/x/resolve/y/z", "/%zz"} {
		f.Add(p)
	}
	h := hub.New(hub.Config{}, tiny()).Handler()
	f.Fuzz(func(t *testing.T, path string) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://hub/"+strings.TrimPrefix(path, "/"), nil)
		if err != nil {
			return
		}
		w := newSink()
		h.ServeHTTP(w, r)
		if w.status < 200 || w.status > 599 {
			t.Errorf("%q: status %d", path, w.status)
		}
	})
}

func getRequest(t *testing.T, url string) *http.Request {
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sink is a response writer that keeps the status only.
type sink struct {
	header http.Header
	status int
}

func newSink() *sink                            { return &sink{header: http.Header{}} }
func (s *sink) Header() http.Header             { return s.header }
func (s *sink) WriteHeader(status int)          { s.status = status }
func (s *sink) Write(p []byte) (n int, _ error) { return len(p), nil }
