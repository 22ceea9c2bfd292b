package hub_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/stager/hub"
)

const big = 3 << 19 // bytes of the model that faults are tried on: 1.5 MiB

func bigModel() memory {
	r := tiny()
	r.content["model.safetensors"] = strings.Repeat("0123456789abcdef", big/16)
	return r
}

func always(*http.Request) bool { return true }

func TestBrokenBodies(t *testing.T) {
	s := serve(t, hub.Config{}, bigModel())
	to := s.signed("model.safetensors")
	want := []byte(bigModel().content["model.safetensors"])
	for fault, sent := range map[string]int{
		"return-broken-stream":                       big / 2,
		"return-broken-stream-after-0K":              0,
		"return-broken-stream-after-64K":             64 << 10,
		"return-503-after-256K":                      256 << 10,
		"return-503-after-256K/retry-2":              256 << 10,
		"return-503-after-256K/retry-3":              big,
		"return-broken-stream-after-1535K":           1535 << 10,
		"return-broken-stream-after-1536K":           big, // the end is no break
		"stall-for-0s-after-1K, return-503-after-2K": 2 << 10,
	} {
		r := s.get(to, hub.FaultHeader, fault)
		r.expect(t, 200)
		if len(r.body) != sent || (r.err != nil) != (sent < big) || !bytes.Equal(r.body, want[:sent]) {
			t.Errorf("%s: %d bytes and error %v, want %d right ones", fault, len(r.body), r.err, sent)
		}
		if sent < big && !errors.Is(r.err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: error %v", fault, r.err)
		}
	}
	r := s.get(to, hub.FaultHeader, "return-broken-stream-after-1K", "Range", "bytes=16-4095")
	r.expect(t, 206)
	if !bytes.Equal(r.body, want[:1024]) {
		t.Errorf("a broken range has %d bytes", len(r.body))
	}
}

func TestCorruptedDataHasTheRightLength(t *testing.T) {
	s := serve(t, hub.Config{}, bigModel())
	want := bigModel().content["model.safetensors"]
	r := s.get(s.signed("model.safetensors"), hub.FaultHeader, "return-corrupted-data")
	different := 0
	for i := range r.body {
		if r.body[i] != want[i] {
			different++
		}
	}
	if len(r.body) != big || different != 1 {
		t.Errorf("%d bytes, %d of them wrong; want %d and 1", len(r.body), different, big)
	}
	small := s.get(s.get("/org/tiny/resolve/main/config.json").Header.Get("Location"), hub.FaultHeader, "return-corrupted-data")
	if text := tiny().content["config.json"]; string(small.body) == text || len(small.body) != len(text) {
		t.Errorf("small file %q", small.body)
	}
}

func TestStatusInsteadOfAnAnswer(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	to := s.signed("model.safetensors")
	s.Plan(always, "return-503", "", "return-429", "return-401,header=X-Error-Message:no%20way")
	s.get(to).expect(t, 503)
	s.get(to).expect(t, 200)
	s.get("/api/models/org/tiny").expect(t, 429, "RateLimit", `"api";r=0;t=0`)
	s.get("/api/models/org/tiny").expect(t, 401, "X-Error-Message", "no way")
	s.get(to).expect(t, 200)
}

func TestReset(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	s.ResetRequests()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api/models/org/tiny HTTP/1.1\r\nHost: hub\r\n"+hub.FaultHeader+": return-reset-connection\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("error %v, want a reset", err)
	}
	if got := s.Requests(); len(got) != 1 || got[0].Status != 0 {
		t.Errorf("requests %+v", got)
	}
}

func TestStallsLastUntilTheClientLeaves(t *testing.T) {
	s := serve(t, hub.Config{}, bigModel())
	to := s.signed("model.safetensors")
	for fault, sent := range map[string]int64{"stall-always": 0, "stall-at-256KiB": 256 << 10} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.cdn, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(to, s.cdn)
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: cdn\r\n"+hub.FaultHeader+": "+fault+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if sent > 0 { // with its header the body is longer than what must come
			if _, err := io.CopyN(io.Discard, conn, sent); err != nil {
				t.Errorf("%s: %v", fault, err)
			}
		}
		conn.Close() // the server's Close at the end of the test waits for the handler
	}
}

// TestPauses uses a clock that does not wait: a handler and a response writer without a network.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hub.New(hub.Config{}, tiny()).Handler()
		r := getRequest(t, "http://hub/api/models/org/tiny")
		r.Header.Set(hub.FaultHeader, "stall-for-7s-after-0K")
		start := time.Now()
		h.ServeHTTP(newSink(), r)
		if got := time.Since(start); got != 7*time.Second {
			t.Errorf("the answer took %v, want 7s", got)
		}
	})
}

func TestLies(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	tree := "/api/models/org/tiny/tree/main?recursive=true"
	lie := func(to, fault string) reply { return s.get(to, hub.FaultHeader, fault) }
	list := func(fault string) map[string]node {
		t.Helper()
		var entries []node
		r := lie(tree, fault)
		r.expect(t, 200)
		r.decode(t, &entries)
		byPath := map[string]node{}
		for _, e := range entries {
			byPath[e.Path] = e
		}
		return byPath
	}
	if e := list("wrong-size-in-tree")["model.safetensors"]; e.Size != 1025 || e.LFS.Size != 1025 {
		t.Errorf("wrong size: %+v", e)
	}
	if e := list("size-in-tree=-1")["config.json"]; e.Size != -1 {
		t.Errorf("negative size: %+v", e)
	}
	if r := lie(tree, "size-in-tree=1e400"); !json.Valid(r.body) || !bytes.Contains(r.body, []byte("1e400")) {
		t.Errorf("absurd size: %s", r.body)
	}
	if e := list("wrong-sha256-in-tree")["model.safetensors"]; e.LFS.OID != strings.Repeat("0", 64) {
		t.Errorf("wrong sha256: %+v", e.LFS)
	}
	if e := list("wrong-sha1-in-tree")["config.json"]; e.OID != strings.Repeat("0", 40) {
		t.Errorf("wrong sha1: %+v", e)
	}
	if e := list("type-in-tree=symlink")["config.json"]; e.Type != "symlink" {
		t.Errorf("type: %+v", e)
	}
	for raw, name := range map[string]string{
		"..%2F..%2Fetc%2Fpasswd": "../../etc/passwd", "%2Fetc%2Fpasswd": "/etc/passwd", "a%00b": "a\x00b", "CONFIG.JSON": "CONFIG.JSON",
		strings.Repeat("x", 5000): strings.Repeat("x", 5000), "": "",
	} {
		if _, ok := list("file-in-tree=" + raw)[name]; !ok {
			t.Errorf("the tree has no %q", name)
		}
	}
	if siblings := lie("/api/models/org/tiny?blobs=true", "file-in-tree=..%2Fx"); !bytes.Contains(siblings.body, []byte(`"../x"`)) {
		t.Errorf("siblings %s", siblings.body)
	}
	_, next := s.page(tree + "&limit=2")
	if _, loop := s.page(next); loop == next {
		t.Error("the pages loop without a lie")
	}
	if link := lie(tree+"&limit=2", "loop-in-tree").Header.Get("Link"); link == "" || strings.Contains(link, "cursor") {
		t.Errorf("Link %s does not lead to the first page", link)
	}
	lie("/org/tiny/resolve/main/config.json", "wrong-commit").expect(t, 307, "X-Repo-Commit", "badc0de5badc0de5badc0de5badc0de5badc0de5")
	lie("/org/tiny/resolve/main/model.safetensors", "header=X-Linked-Size:17,header=X-Linked-Etag:,header=Location:http%3A%2F%2Felsewhere%2F").expect(t, 302,
		"X-Linked-Size", "17", "X-Linked-Etag", "", "Location", "http://elsewhere/")
	to := s.signed("model.safetensors")
	r := s.get(to, hub.FaultHeader, "ignore-range", "Range", "bytes=5-9")
	if r.expect(t, 200, "Content-Range", ""); len(r.body) != 1024 {
		t.Errorf("%d bytes of an ignored range", len(r.body))
	}
	lie(to, "html-body").expect(t, 200, "Content-Type", "text/html; charset=utf-8")
}

func TestAnEndlessBodyEndsWithItsReader(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	req := getRequest(t, s.api+"/api/models/org/tiny")
	req.Header.Set(hub.FaultHeader, "endless-body")
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 4<<20); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
}

func TestAPlanIsForWhatItMatches(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	s.Plan(hub.CDNFile("model.safetensors"), "return-500")
	s.Plan(func(r *http.Request) bool { return r.Method == "HEAD" }, "return-502", "return-504")
	s.get("/api/models/org/tiny").expect(t, 200)
	s.ask("HEAD", "/api/models/org/tiny").expect(t, 502)
	s.ask("HEAD", "/api/models/org/tiny").expect(t, 504)
	to := s.signed("model.safetensors")
	s.get(to).expect(t, 500)
	s.get(to).expect(t, 200)
}

func TestWhatIsNoFault(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	for _, bad := range []string{"return-200", "return-99", "return-5033", "x", "stall-for-1s", "return-503-after-1K-after-1K", "ignore-range=1", "header", "size-in-tree=x", "file-in-tree=%zz", "stall-at-1KiB"} {
		s.get("/api/models/org/tiny", hub.FaultHeader, bad).expect(t, 400)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Plan(%q) did not panic", bad)
				}
			}()
			s.Plan(always, bad)
		}()
	}
}
