package bucket_test

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cloud.google.com/go/storage"

	"github.com/headstart-serving/headstart/stager/bucket"
)

func TestCopies(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	ctx := t.Context()
	if err := h.CreateBucket("other"); err != nil {
		t.Fatal(err)
	}
	data := pattern(300 << 10)
	w := h.object("a").NewWriter(ctx)
	w.ContentType, w.Metadata = "x/y", map[string]string{"k": "v"}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	far := h.client.Bucket("other").Object("dir/copy")
	for _, dst := range []*storage.ObjectHandle{h.object("b"), far} {
		a, err := dst.CopierFrom(h.object("a")).Run(ctx)
		if err != nil || a.ContentType != "x/y" || a.Metadata["k"] != "v" || !bytes.Equal(a.MD5, w.Attrs().MD5) || a.Metageneration != 1 {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	c := h.object("c").CopierFrom(h.object("a"))
	c.ContentType, c.Metadata = "z/z", map[string]string{"only": "this"}
	if a, err := c.Run(ctx); err != nil || a.ContentType != "z/z" || len(a.Metadata) != 1 || a.Metadata["only"] != "this" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := h.object("d").Move(ctx, storage.MoveObjectDestination{Object: "e"}); status(err) != 404 {
		t.Errorf("move of nothing: %v", err)
	}
	if a, err := h.object("c").Move(ctx, storage.MoveObjectDestination{Object: "moved"}); err != nil || a.Name != "moved" || a.ContentType != "z/z" {
		t.Errorf("%+v, %v", a, err)
	}
	h.ask(t, "POST", "/storage/v1/b/models/o/moved/moveTo/o/moved", nil).want(t, 400)
	if got := names(t, h, nil); got != "a b moved" {
		t.Errorf("objects: %s", got)
	}
	if err := h.object("a").Delete(ctx); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*storage.ObjectHandle{h.object("b"), h.object("moved"), far} {
		if got := get(t, o, 0, -1); !bytes.Equal(got, data) {
			t.Error("a copy went with its source")
		}
	}
	if got := leftovers(t, dir); got != "models/blobs 1, models/objects 2, other/blobs 1, other/objects 1" && !strings.Contains(got, "uploads") {
		t.Errorf("on disk: %s", got)
	}
}

func TestHolds(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	h.ask(t, "PATCH", "/storage/v1/b/models/o/a", []byte(`{"temporaryHold":true}`)).want(t, 200)
	h.ask(t, "DELETE", "/models/a", nil).want(t, 403)
	h.ask(t, "PUT", "/models/a", nil).want(t, 403)
	h.ask(t, "PATCH", "/storage/v1/b/models/o/a", []byte(`{"temporaryHold":null}`)).want(t, 200)
	h.ask(t, "DELETE", "/models/a", nil).want(t, 204)
}

func TestPatchAndUpdate(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	path := "/storage/v1/b/models/o/a"
	for _, c := range []struct {
		method, body string
		status       int
		kind, meta   string
	}{
		{"PATCH", `{"contentType":"x/y","metadata":{"a":"1","b":"2"}}`, 200, "x/y", `{"a":"1","b":"2"}`},
		{"PATCH", `{"metadata":{"a":null,"c":"3"}}`, 200, "x/y", `{"b":"2","c":"3"}`},
		{"PATCH", `{"metadata":null}`, 200, "x/y", `null`},
		{"PATCH", `{"size":"99","generation":"1","name":"b"}`, 200, "x/y", `null`},
		{"PATCH", `{"contentType":7}`, 400, "", ""},
		{"PATCH", `{"customTime":"yesterday"}`, 400, "", ""},
		{"PATCH", `nonsense`, 400, "", ""},
		{"PUT", `{"metadata":{"z":"1"}}`, 200, "", `{"z":"1"}`},
	} {
		a := h.ask(t, c.method, path, []byte(c.body)).want(t, c.status)
		if c.status != 200 {
			continue
		}
		r := a.resource(t)
		meta, err := json.Marshal(r.Metadata)
		if err != nil || r.ContentType != c.kind || string(meta) != c.meta || r.Size != "1" || r.Name != "a" {
			t.Errorf("%s %s: %+v", c.method, c.body, r)
		}
	}
	if r := h.ask(t, "POST", path, []byte(`{}`), "X-HTTP-Method-Override: PATCH").want(t, 200).resource(t); r.Metageneration != "7" {
		t.Errorf("metageneration %s", r.Metageneration)
	}
}

func TestBatch(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	body := "--b\r\nContent-Type: application/http\r\nContent-ID: <id+1>\r\n\r\nDELETE /storage/v1/b/models/o/a HTTP/1.1\r\n\r\n\r\n" +
		"--b\r\nContent-Type: application/http\r\nContent-ID: <id+2>\r\n\r\nGET /storage/v1/b/models/o/a HTTP/1.1\r\n\r\n\r\n" +
		"--b\r\nContent-Type: application/http\r\n\r\nGET /models/a?alt=media HTTP/1.1\r\n\r\n\r\n--b--"
	a := h.ask(t, "POST", "/batch/storage/v1", []byte(body), "Content-Type: multipart/mixed; boundary=b").want(t, 200)
	_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, want := range []string{"HTTP/1.1 204 No Content", "HTTP/1.1 404 Not Found", "HTTP/1.1 400 Bad Request"} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(part)
		if err != nil || !strings.HasPrefix(string(data), want+"\r\n") {
			t.Errorf("%s, want %s", data, want)
		}
	}
	h.ask(t, "POST", "/batch/storage/v1", []byte("--b\r\n\r\nnonsense\r\n--b--"), "Content-Type: multipart/mixed; boundary=b").want(t, 400)
	h.ask(t, "POST", "/batch/storage/v1", nil, "Content-Type: text/plain").want(t, 400)
}

// TestDamagedDirectory starts on what a killed server, a power cut or a person left behind.
func TestDamagedDirectory(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	h.upload(t, "good", []byte("good"))
	h.upload(t, "short", []byte("cut off by a power cut"))
	h.Close()
	blobs, err := os.ReadDir(filepath.Join(dir, name, "blobs"))
	if err != nil || len(blobs) != 2 {
		t.Fatal(blobs, err)
	}
	for _, b := range blobs {
		path := filepath.Join(dir, name, "blobs", b.Name())
		if st, err := b.Info(); err != nil {
			t.Fatal(err)
		} else if st.Size() > 4 {
			if err := os.Truncate(path, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, file := range []string{"blobs/ORPHAN", "objects/.tmp-x.json", "uploads/.tmp-y.json"} {
		if err := os.WriteFile(filepath.Join(dir, name, file), []byte("half"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "Not A Bucket"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "made-by-hand"), 0o777); err != nil {
		t.Fatal(err)
	}
	h = restart(t, dir)
	if got := names(t, h, nil); got != "good" {
		t.Errorf("objects: %s", got)
	}
	if got := leftovers(t, dir); got != "models/blobs 1, models/objects 1" {
		t.Errorf("on disk: %s", got)
	}
	put(t, h.client.Bucket("made-by-hand").Object("a"), nil)
	h.Close()
	if err := os.WriteFile(filepath.Join(dir, name, "objects", "bad.json"), []byte("{"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.New(dir); err == nil || !strings.Contains(err.Error(), "bad.json is damaged") {
		t.Errorf("a damaged record: %v", err)
	}
}

// TestRewriteInSteps copies with the client, which calls again until it is done; a token is good for its
// own copy alone.
func TestRewriteInSteps(t *testing.T) {
	h := start(t, t.TempDir())
	h.RewriteAtOnce = 100 << 10
	data := pattern(300<<10 + 1)
	w := h.object("a").NewWriter(t.Context())
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var steps []uint64
	c := h.object("b").CopierFrom(h.object("a").Generation(w.Attrs().Generation))
	c.ProgressFunc = func(copied, _ uint64) { steps = append(steps, copied) }
	a, err := c.Run(t.Context())
	if err != nil || a.CRC32C != w.Attrs().CRC32C || a.Size != int64(len(data)) {
		t.Fatalf("%+v, %v", a, err)
	}
	if want := []uint64{100 << 10, 200 << 10, 300 << 10, 300<<10 + 1}; !slices.Equal(steps, want) {
		t.Errorf("steps %d, want %d", steps, want)
	}
	h.ask(t, "POST", "/storage/v1/b/models/o/a/rewriteTo/b/models/o/c?rewriteToken=none", nil).want(t, 400)
	if got := names(t, h, nil); got != "a b" {
		t.Errorf("objects: %s", got)
	}
}
