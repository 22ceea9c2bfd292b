package hub_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/stager/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	commit1 = "1111111111111111111111111111111111111111"
	commit2 = "2222222222222222222222222222222222222222"
	token   = "hf_secret"
)

// memory is a repository of a few bytes. Files named *.safetensors are LFS files.
type memory struct {
	name, commit string
	content      map[string]string
}

func (m memory) Name() string            { return m.name }
func (m memory) Commit() string          { return m.commit }
func (m memory) LastModified() time.Time { return time.Unix(1_750_000_000, 0) }

func (m memory) Files() []hub.File {
	var files []hub.File
	for path, text := range m.content {
		files = append(files, hub.File{
			Path: path, Size: int64(len(text)), LFS: strings.HasSuffix(path, ".safetensors"),
			SHA256:  func() ([32]byte, error) { return sha256.Sum256([]byte(text)), nil },
			GitSHA1: hub.GitSHA1([]byte(text)),
		})
	}
	slices.SortFunc(files, func(a, b hub.File) int { return cmp.Compare(a.Path, b.Path) })
	return files
}

func (m memory) Open(path string) (io.ReaderAt, error) {
	text, ok := m.content[path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return strings.NewReader(text), nil
}

// tiny is the model that most tests ask for.
func tiny() memory {
	return memory{name: "org/tiny", commit: commit1, content: map[string]string{
		"config.json":        `{"model_type":"tiny"}`,
		"model.safetensors":  strings.Repeat("0123456789abcdef", 64),
		"tokenizer/vocab.md": strings.Repeat("word ", 1000),
		"empty.txt":          "",
	}}
}

// served is a running Hub and somebody who asks it without following redirects.
type served struct {
	*hub.Server
	t        *testing.T
	api, cdn string
	client   *http.Client
}

func serve(t *testing.T, cfg hub.Config, repos ...hub.Repo) *served {
	t.Helper()
	s := hub.New(cfg, repos...)
	api, cdn := httptest.NewServer(s.Handler()), httptest.NewServer(s.CDN())
	s.SetCDN(cdn.URL)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(func() { transport.CloseIdleConnections(); api.Close(); cdn.Close() })
	return &served{Server: s, t: t, api: api.URL, cdn: cdn.URL, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// reply is an answer that was read to its end.
type reply struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

// ask sends a request to a path of the API, or a whole URL, with headers in pairs.
func (s *served) ask(method, to string, headers ...string) reply {
	s.t.Helper()
	r, err := s.send(method, to, nil, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, to, err)
	}
	return r
}

func (s *served) send(method, to string, body io.Reader, headers ...string) (reply, error) {
	s.t.Helper()
	if strings.HasPrefix(to, "/") {
		to = s.api + to
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, to, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	r := reply{Response: resp}
	r.body, r.err = io.ReadAll(resp.Body)
	return r, nil
}

func (s *served) get(to string, headers ...string) reply { return s.ask("GET", to, headers...) }

// signed returns the URL on the CDN of a file of org/tiny.
func (s *served) signed(path string) string {
	s.t.Helper()
	r := s.ask("HEAD", "/org/tiny/resolve/main/"+path)
	r.expect(s.t, 302)
	return r.Header.Get("Location")
}

// expect compares the status and headers in pairs; "" is a header that must be absent.
func (r reply) expect(t *testing.T, status int, headers ...string) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("%s %s: status %d, want %d: %s", r.Request.Method, r.Request.URL, r.StatusCode, status, r.body)
	}
	for i := 0; i < len(headers); i += 2 {
		if got := r.Header.Get(headers[i]); got != headers[i+1] {
			t.Errorf("%s %s: %s: %q, want %q", r.Request.Method, r.Request.URL, headers[i], got, headers[i+1])
		}
	}
}

func (r reply) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%s: %v: %s", r.Request.URL, err, r.body)
	}
}

func TestASmallFileIsOnTheSameHost(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	want := tiny().content["config.json"]
	etag := fmt.Sprintf(`"%x"`, hub.GitSHA1([]byte(want)))
	for _, method := range []string{"HEAD", "GET"} {
		r := s.ask(method, "/org/tiny/resolve/main/config.json")
		r.expect(t, 307, "X-Repo-Commit", commit1, "X-Linked-Etag", etag, "Accept-Ranges", "bytes", "X-Linked-Size", "", "X-Xet-Hash", "",
			"Content-Disposition", `inline; filename*=UTF-8''config.json; filename="config.json";`,
			"Location", "/api/resolve-cache/models/org/tiny/"+commit1+"/config.json?%2Forg%2Ftiny%2Fresolve%2Fmain%2Fconfig.json=&etag=%22"+strings.Trim(etag, `"`)+"%22")
		to := r.Header.Get("Location")
		r = s.ask(method, to)
		r.expect(t, 200, "ETag", etag, "X-Repo-Commit", commit1, "Content-Length", fmt.Sprint(len(want)), "Accept-Ranges", "bytes")
		if method == "GET" && string(r.body) != want {
			t.Errorf("body %q, want %q", r.body, want)
		}
		s.ask(method, to, "If-None-Match", etag).expect(t, 304, "ETag", etag)
		s.ask(method, to, "If-None-Match", `"other"`).expect(t, 200)
	}
}

func TestTextIsCompressedForWhoeverLetsIt(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	to := s.get("/org/tiny/resolve/main/tokenizer/vocab.md").Header.Get("Location")
	plain := s.get(to, "Accept-Encoding", "identity")
	plain.expect(t, 200, "Content-Length", "5000", "Content-Encoding", "")
	zipped := s.get(to, "Accept-Encoding", "gzip, deflate")
	zipped.expect(t, 200, "Content-Length", "", "Content-Encoding", "gzip", "ETag", "W/"+plain.Header.Get("ETag"))
	if len(zipped.body) >= 5000 {
		t.Errorf("%d bytes, not compressed", len(zipped.body))
	}
	s.get(to, "Accept-Encoding", "gzip", "Range", "bytes=0-3").expect(t, 206, "Content-Encoding", "")
	s.get(to, "Accept-Encoding", "gzip", "If-None-Match", zipped.Header.Get("ETag")).expect(t, 304)
}

func TestALargeFileIsOnTheCDN(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	want := tiny().content["model.safetensors"]
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(want)))
	for _, method := range []string{"HEAD", "GET"} {
		r := s.ask(method, "/org/tiny/resolve/main/model.safetensors", "Authorization", "Bearer "+token)
		r.expect(t, 302, "X-Repo-Commit", commit1, "X-Linked-Etag", `"`+sum+`"`, "X-Linked-Size", "1024", "Cache-Control", "no-store", "X-Xet-Hash", "", "Link", "")
		to := r.Header.Get("Location")
		if !strings.HasPrefix(to, s.cdn+"/xet-bridge-us/") {
			t.Fatalf("Location %s is not on the CDN", to)
		}
		for _, part := range []string{"Expires=", "Policy=", "Signature="} {
			if !strings.Contains(to, part) {
				t.Errorf("Location %s has no %s", to, part)
			}
		}
		if method == "GET" && r.ContentLength == int64(len(want)) {
			t.Error("the redirect's Content-Length is the file's")
		}
		r = s.ask(method, to)
		r.expect(t, 200, "Content-Length", "1024", "Accept-Ranges", "bytes", "X-Repo-Commit", "", "RateLimit", "")
		if strings.Contains(r.Header.Get("ETag"), sum) || r.Header.Get("ETag") == "" {
			t.Errorf("ETag of the CDN %q is the sha256 or nothing", r.Header.Get("ETag"))
		}
		if method == "GET" && string(r.body) != want {
			t.Errorf("%d bytes differ", len(r.body))
		}
	}
}

func TestTheCDNRefusesATokenAndRemembersIt(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	to := s.signed("model.safetensors")
	s.ResetRequests()
	s.get(to, "Authorization", "Bearer "+token).expect(t, 400)
	s.get(to).expect(t, 200)
	got := s.Requests()
	if len(got) != 2 || !got[0].Token || got[0].Status != 400 || got[1].Token || got[1].Status != 200 || got[1].Host != "cdn" {
		t.Errorf("requests %+v", got)
	}
	if text := fmt.Sprintf("%+v", got); strings.Contains(text, token) {
		t.Errorf("the token is in the journal: %s", text)
	}
}

func TestASignedURLIsGoodForOneThingAndAWhile(t *testing.T) {
	now := time.Unix(1_760_000_000, 0)
	s := serve(t, hub.Config{Now: func() time.Time { return now }, Signed: time.Minute}, tiny())
	to := s.signed("model.safetensors")
	last := to[len(to)-20:]
	for name, bad := range map[string]string{
		"other object":      strings.Replace(to, "/xet-bridge-us/", "/xet-bridge-us/0", 1),
		"other disposition": strings.Replace(to, "model.safetensors", "other.safetensors", 1),
		"longer life":       strings.Replace(to, "Expires=1760000060", "Expires=1760009999", 1),
		"other signature":   strings.Replace(to, "Signature=", "Signature=AAAA", 1),
		"no query":          to[:strings.Index(to, "?")],
		"cut short":         to[:strings.Index(to, "&Signature")],
		"no life":           strings.Replace(to, "&Expires=1760000060", "", 1),
	} {
		if bad == to {
			t.Fatalf("%s: nothing altered in …%s", name, last)
		}
		r := s.get(bad)
		r.expect(t, 403, "Content-Type", "application/xml")
		if !bytes.Contains(r.body, []byte("<Code>AccessDenied</Code>")) {
			t.Errorf("%s: body %s", name, r.body)
		}
	}
	now = now.Add(59 * time.Second)
	s.get(to).expect(t, 200)
	now = now.Add(time.Second)
	s.get(to).expect(t, 403)
	if s.signed("model.safetensors") == to {
		t.Error("a new answer has the expired URL")
	}
	s.ask("PUT", to).expect(t, 405)
}

func TestRequestsAreInOrder(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	s.get("/api/models/org/tiny/revision/refs%2Fheads%2Fmain?blobs=true", "Authorization", "Bearer "+token).expect(t, 200)
	s.get("/org/tiny/resolve/main/none", "Range", "bytes=0-1").expect(t, 404)
	want := []hub.Request{
		{Host: "api", Method: "GET", Path: "/api/models/org/tiny/revision/refs%2Fheads%2Fmain", Query: "blobs=true", Token: true, Status: 200},
		{Host: "api", Method: "GET", Path: "/org/tiny/resolve/main/none", Range: "bytes=0-1", Status: 404},
	}
	if got := s.Requests(); !slices.Equal(got, want) {
		t.Errorf("requests %+v, want %+v", got, want)
	}
	s.ResetRequests()
	if got := s.Requests(); len(got) != 0 {
		t.Errorf("requests after a reset: %+v", got)
	}
}

func TestAServerWithoutACDNSaysSo(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	s.SetCDN("")
	s.get("/org/tiny/resolve/main/model.safetensors").expect(t, 500, "X-Error-Message", "this Hub was not told where its CDN is")
	for _, any := range []string{"http://:81", "http://0.0.0.0:81", "http://[::]:81"} {
		s.SetCDN(any)
		r := s.get("/org/tiny/resolve/main/model.safetensors")
		if got := r.Header.Get("Location"); !strings.HasPrefix(got, "http://127.0.0.1:81/") {
			t.Errorf("CDN %s: Location %s is not under the client's name for this host", any, got)
		}
	}
}

// failing is a repository whose bytes cannot be read beyond the first ones.
type failing struct{ memory }

func (f failing) Open(path string) (io.ReaderAt, error) {
	if path == "config.json" {
		return nil, errors.New("the disk is on fire")
	}
	return io.NewSectionReader(strings.NewReader("short"), 0, 5), nil
}

func TestBytesThatCannotBeReadAreNotAnOrdinaryEnd(t *testing.T) {
	s := serve(t, hub.Config{}, failing{tiny()})
	r := s.get(s.get("/org/tiny/resolve/main/config.json").Header.Get("Location"))
	r.expect(t, 500, "ETag", "")
	r, err := s.send("GET", s.signed("model.safetensors"), nil)
	if err == nil && r.err == nil {
		t.Errorf("a file that ends early is answered with %d bytes and no error", len(r.body))
	}
}
