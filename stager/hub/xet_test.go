package hub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// xetHub is a Hub with Xet on: chunks of 1000 bytes, three in a xorb.
type xetHub struct {
	*hub.Server
	api, cdn, cas *httptest.Server
	repo          *counted
}

// counted is a repository of one LFS file of 5003 bytes that counts how often it is read from the beginning.
type counted struct {
	name  string
	reads atomic.Int64
}

var counting = strings.Repeat("0123456789", 501)[:5003]

func (r *counted) Name() string            { return r.name }
func (r *counted) Commit() string          { return strings.Repeat("ab", 20) }
func (r *counted) LastModified() time.Time { return time.Unix(1_750_000_000, 0) }
func (r *counted) Open(string) (io.ReaderAt, error) {
	return readerFunc(func(p []byte, off int64) (int, error) {
		if off == 0 {
			r.reads.Add(1)
		}
		return strings.NewReader(counting).ReadAt(p, off)
	}), nil
}

func (r *counted) Files() []hub.File {
	return []hub.File{
		{Path: "README.md", Size: 0, GitSHA1: hub.GitSHA1(nil)},
		{Path: "model.safetensors", Size: int64(len(counting)), LFS: true, SHA256: func() ([32]byte, error) { return [32]byte{7}, nil }},
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func serveXet(t *testing.T, cfg hub.Config, bridge int64) *xetHub {
	t.Helper()
	cfg.Xet = &hub.Xet{Bridge: bridge, Packing: xorb.Config{Chunk: 1000, Chunks: 3}}
	h := &xetHub{repo: &counted{name: "org/xet"}}
	h.Server = hub.New(cfg, h.repo, &counted{name: "org/other"})
	h.api, h.cdn, h.cas = httptest.NewServer(h.Handler()), httptest.NewServer(h.CDN()), httptest.NewServer(h.CAS())
	for _, s := range []*httptest.Server{h.api, h.cdn, h.cas} {
		t.Cleanup(s.Close)
	}
	h.SetCDN(h.cdn.URL)
	h.SetCAS(h.cas.URL)
	return h
}

// get sends a request with headers ("Name: value") and returns the answer and its body.
func (h *xetHub) get(t *testing.T, method, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range headers {
		name, value, _ := strings.Cut(one, ": ")
		r.Header.Set(name, value)
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

const xetFile = "/org/xet/resolve/main/model.safetensors"

// token asks for one as a client does, and returns it as a header.
func (h *xetHub) token(t *testing.T, repo string) string {
	t.Helper()
	r, body := h.get(t, "GET", h.api.URL+"/api/models/"+repo+"/xet-read-token/main")
	var doc struct {
		Access string `json:"accessToken"`
		Exp    int64  `json:"exp"`
		CAS    string `json:"casUrl"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil || r.StatusCode != http.StatusOK {
		t.Fatal(r.StatusCode, body)
	}
	if doc.Access != r.Header.Get("X-Xet-Access-Token") || fmt.Sprint(doc.Exp) != r.Header.Get("X-Xet-Token-Expiration") || doc.CAS != h.cas.URL || doc.CAS != r.Header.Get("X-Xet-Cas-Url") {
		t.Errorf("%s, %v", body, r.Header)
	}
	return "Authorization: Bearer " + doc.Access
}

func (h *xetHub) hash(t *testing.T) string {
	t.Helper()
	r, _ := h.get(t, "HEAD", h.api.URL+xetFile)
	return r.Header.Get("X-Xet-Hash")
}

func TestXetResolve(t *testing.T) {
	h := serveXet(t, hub.Config{}, 0)
	r, _ := h.get(t, "HEAD", h.api.URL+xetFile)
	hash := r.Header.Get("X-Xet-Hash")
	want := fmt.Sprintf(`<%s/api/models/org/xet/xet-read-token/%s>; rel="xet-auth", <%s/v1/reconstructions/%s>; rel="xet-reconstruction-info"`, h.api.URL, h.repo.Commit(), h.cas.URL, hash)
	if r.StatusCode != http.StatusFound || len(hash) != 64 || r.Header.Get("Link") != want || r.Header.Get("X-Linked-Size") != "5003" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	_, tree := h.get(t, "GET", h.api.URL+"/api/models/org/xet/tree/main")
	if strings.Count(tree, "xetHash") != 1 || !strings.Contains(tree, `"xetHash":"`+hash+`"`) {
		t.Error(tree)
	}
	if r, _ := h.get(t, "HEAD", h.api.URL+"/org/xet/resolve/main/README.md"); r.Header.Get("X-Xet-Hash") != "" {
		t.Error("a small file is in Xet")
	}
	if n := h.repo.reads.Load(); n != 1 {
		t.Errorf("the file was read %d times for its hash", n)
	}
}

// TestXetOnly is a file above the size that can be had over plain HTTP.
func TestXetOnly(t *testing.T) {
	h := serveXet(t, hub.Config{}, 5002)
	r, _ := h.get(t, "HEAD", h.api.URL+xetFile)
	if r.StatusCode != http.StatusOK || r.Header.Get("Location") != "" || r.Header.Get("X-Xet-Hash") == "" || r.ContentLength == 5003 {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	if r, body := h.get(t, "GET", h.api.URL+xetFile); r.StatusCode != http.StatusForbidden || !strings.Contains(body, "use Xet") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
}

// TestReconstruction follows a plan by hand.
func TestReconstruction(t *testing.T) {
	h := serveXet(t, hub.Config{}, 0)
	hash, token := h.hash(t), h.token(t, "org/xet")
	r, body := h.get(t, "GET", h.cas.URL+"/v2/reconstructions/"+hash, token, "Range: bytes=2500-3100")
	var plan struct {
		Skip  int64 `json:"offset_into_first_range"`
		Terms []struct {
			Hash   string                   `json:"hash"`
			Length int64                    `json:"unpacked_length"`
			Range  struct{ Start, End int } `json:"range"`
		} `json:"terms"`
		Xorbs map[string][]struct {
			URL    string `json:"url"`
			Ranges []struct {
				Chunks, Bytes struct{ Start, End int }
			} `json:"ranges"`
		} `json:"xorbs"`
	}
	if err := json.Unmarshal([]byte(body), &plan); err != nil || r.StatusCode != http.StatusOK || len(plan.Terms) != 2 || plan.Skip != 500 {
		t.Fatalf("%d %s", r.StatusCode, body)
	}
	first, x := plan.Terms[0], plan.Xorbs[plan.Terms[0].Hash][0]
	if first.Length != 1000 || first.Range.Start != 2 || first.Range.End != 3 || x.Ranges[0].Bytes.Start != 2016 || x.Ranges[0].Bytes.End != 3023 {
		t.Errorf("%+v, %+v", first, x)
	}
	if r, body := h.get(t, "GET", x.URL, "Range: bytes=2016-3023"); r.StatusCode != http.StatusPartialContent || body[8:] != counting[2000:3000] {
		t.Errorf("%d %q", r.StatusCode, body)
	}
	for _, headers := range [][]string{nil, {"Range: bytes=2016-3022"}, {"Range: bytes=0-3023"}} {
		if r, _ := h.get(t, "GET", x.URL, headers...); r.StatusCode != http.StatusForbidden {
			t.Errorf("%v: %d, want what was not signed to be refused", headers, r.StatusCode)
		}
	}
	if r, _ := h.get(t, "GET", x.URL, "Range: bytes=2016-3023", token); r.StatusCode != http.StatusBadRequest {
		t.Errorf("with a token: %d", r.StatusCode)
	}
	if _, v1 := h.get(t, "GET", h.cas.URL+"/v1/reconstructions/"+hash, token); !strings.Contains(v1, `"fetch_info":{`) || !strings.Contains(v1, `"url_range":{"start":0,"end":3023}`) {
		t.Error(v1)
	}
}

// TestStoreRefuses whom it does not know and what it does not have.
func TestStoreRefuses(t *testing.T) {
	var late atomic.Int64 // nanoseconds
	h := serveXet(t, hub.Config{Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) }, Signed: time.Hour}, 0)
	hash, token := h.hash(t), h.token(t, "org/xet")
	at := h.cas.URL + "/v2/reconstructions/" + hash
	for name, c := range map[string]struct {
		method, url string
		headers     []string
		want        int
	}{
		"nobody":             {"GET", at, nil, 401},
		"the Hub's token":    {"GET", at, []string{"Authorization: Bearer hf_x"}, 401},
		"a changed token":    {"GET", at, []string{token + "x"}, 401},
		"another repository": {"GET", at, []string{h.token(t, "org/other")}, 404},
		"another file":       {"GET", h.cas.URL + "/v2/reconstructions/" + strings.Repeat("0", 64), []string{token}, 404},
		"behind the end":     {"GET", at, []string{token, "Range: bytes=5003-5004"}, 416},
		"no range":           {"GET", at, []string{token, "Range: lines=1-2"}, 400},
		"another method":     {"POST", at, []string{token}, 405},
		"version 3":          {"GET", h.cas.URL + "/v3/reconstructions/" + hash, []string{token}, 404},
		"telemetry":          {"POST", h.cas.URL + "/v1/telemetry", []string{token}, 404},
	} {
		if r, body := h.get(t, c.method, c.url, c.headers...); r.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", name, r.StatusCode, body, c.want)
		}
	}
	late.Store(int64(time.Hour))
	if r, _ := h.get(t, "GET", at, token); r.StatusCode != 401 {
		t.Errorf("an hour later: %d", r.StatusCode)
	}
}

func TestXetTokenIsForWhoMayRead(t *testing.T) {
	h := serveXet(t, hub.Config{Policies: map[string]hub.Policy{"org/xet": {Gated: "manual"}, "org/other": {Private: true}}}, 0)
	for repo, want := range map[string]int{"org/xet": 401, "org/other": 401, "org/none": 401} {
		if r, _ := h.get(t, "GET", h.api.URL+"/api/models/"+repo+"/xet-read-token/main"); r.StatusCode != want || r.Header.Get("X-Xet-Access-Token") != "" {
			t.Errorf("%s: %d", repo, r.StatusCode)
		}
	}
}

// TestXetHashedOnce has many ask at once, one of whom leaves.
func TestXetHashedOnce(t *testing.T) {
	h := serveXet(t, hub.Config{}, 0)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := http.NewRequestWithContext(gone, "HEAD", h.api.URL+xetFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.DefaultTransport.RoundTrip(r); err == nil {
		t.Error("who left has an answer")
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if h.hash(t) == "" {
				t.Error("no hash")
			}
		})
	}
	all.Wait()
	if n := h.repo.reads.Load(); n != 1 {
		t.Errorf("read %d times", n)
	}
}

// TestWithoutXet has none of it.
func TestWithoutXet(t *testing.T) {
	h := serveXet(t, hub.Config{}, 0)
	s := hub.New(hub.Config{}, &counted{name: "org/xet"})
	api, cas := httptest.NewServer(s.Handler()), httptest.NewServer(s.CAS())
	defer api.Close()
	defer cas.Close()
	s.SetCDN(cas.URL)
	if r, _ := h.get(t, "HEAD", api.URL+xetFile); r.StatusCode != http.StatusFound || r.Header.Get("X-Xet-Hash") != "" || r.Header.Get("Link") != "" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	if r, _ := h.get(t, "GET", api.URL+"/api/models/org/xet/xet-read-token/main"); r.StatusCode != http.StatusNotFound {
		t.Errorf("%d", r.StatusCode)
	}
	if r, _ := h.get(t, "GET", cas.URL+"/v2/reconstructions/"+strings.Repeat("0", 64)); r.StatusCode != http.StatusNotFound {
		t.Errorf("%d", r.StatusCode)
	}
}
