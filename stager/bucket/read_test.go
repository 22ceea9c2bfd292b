package bucket_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	"cloud.google.com/go/storage"
)

// both are the paths of an object's bytes in the two APIs.
func both(o string) []string {
	return []string{"/models/" + o, "/storage/v1/b/models/o/" + o + "?alt=media", "/download/storage/v1/b/models/o/" + o + "?alt=media"}
}

func TestRangeAnswers(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(1000)
	h.upload(t, "a", data)
	h.upload(t, "empty", nil)
	for _, c := range []struct {
		object, header, contentRange string
		status                       int
		want                         []byte
	}{
		{"a", "", "", 200, data},
		{"a", "bytes=0-9", "bytes 0-9/1000", 206, data[:10]},
		{"a", "bytes=999-", "bytes 999-999/1000", 206, data[999:]},
		{"a", "bytes=0-5000", "bytes 0-999/1000", 206, data},
		{"a", "bytes=-7", "bytes 993-999/1000", 206, data[993:]},
		{"a", "bytes=1000-", "bytes */1000", 416, nil},
		{"a", "bytes=-0", "bytes */1000", 416, nil},
		{"a", "bytes=7-3", "", 200, data},
		{"a", "bytes=0-1,5-6", "", 200, data},
		{"empty", "", "", 200, nil},
		{"empty", "bytes=0-", "bytes */0", 416, nil},
	} {
		for _, path := range both(c.object) {
			for _, method := range []string{"GET", "HEAD"} {
				var headers []string
				if c.header != "" {
					headers = []string{"Range: " + c.header}
				}
				a := h.ask(t, method, path, nil, headers...)
				if a.status != c.status || a.header.Get("Content-Range") != c.contentRange {
					t.Errorf("%s %s %q: %d %q", method, path, c.header, a.status, a.header.Get("Content-Range"))
				}
				if method == "GET" && c.status != 416 && !bytes.Equal(a.body, c.want) {
					t.Errorf("%s %s %q: %d bytes", method, path, c.header, len(a.body))
				}
				if c.status != 416 && a.header.Get("Content-Length") != fmt.Sprint(len(c.want)) {
					t.Errorf("%s %s %q: length %s", method, path, c.header, a.header.Get("Content-Length"))
				}
			}
		}
	}
	if a := h.ask(t, "GET", "/models/a", nil, "Range: bytes=2000-"); !strings.Contains(string(a.body), "<Code>InvalidRange</Code>") {
		t.Errorf("%s", a.body)
	}
}

func TestObjectHeaders(t *testing.T) {
	h := start(t, t.TempDir())
	h.ask(t, "PUT", "/models/a", []byte("hello world"), "Content-Type: x/y", "Cache-Control: no-cache", "x-goog-meta-colour: blue", "Content-Language: en").want(t, 200)
	for _, path := range both("a") {
		got := h.ask(t, "GET", path, nil, "Range: bytes=0-3").want(t, 206).header
		for k, want := range map[string]string{
			"X-Goog-Hash": "crc32c=yZRlqg== md5=XrY7u+Ae7tCTyyK7j1rNww==", "X-Goog-Metageneration": "1", "X-Goog-Stored-Content-Length": "11",
			"X-Goog-Stored-Content-Encoding": "identity", "X-Goog-Storage-Class": "STANDARD", "Content-Type": "x/y", "Cache-Control": "no-cache",
			"X-Goog-Meta-Colour": "blue", "Content-Language": "en", "Accept-Ranges": "bytes", "X-Goog-Component-Count": "",
		} {
			if v := strings.Join(got.Values(k), " "); v != want {
				t.Errorf("%s: %s is %q, want %q", path, k, v, want)
			}
		}
		if got.Get("X-Goog-Generation") == "" || got.Get("ETag") == "" || got.Get("Last-Modified") == "" {
			t.Errorf("%s: %v", path, got)
		}
	}
	h.ask(t, "POST", "/storage/v1/b/models/o/c/compose", []byte(`{"sourceObjects":[{"name":"a"},{"name":"a"}]}`)).want(t, 200)
	if got := h.ask(t, "HEAD", "/models/c", nil).want(t, 200).header; got.Get("X-Goog-Component-Count") != "2" || strings.Contains(strings.Join(got.Values("X-Goog-Hash"), " "), "md5") {
		t.Errorf("composite: %v", got)
	}
}

func TestErrorsInBothForms(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	for _, c := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/models/no", 404, "<Code>NoSuchKey</Code>"},
		{"GET", "/nowhere/a", 404, "<Code>NoSuchBucket</Code>"},
		{"GET", "/no/a", 400, "<Code>InvalidBucketName</Code>"},
		{"PATCH", "/models/a", 405, "<Code>MethodNotAllowed</Code>"},
		{"GET", "/storage/v1/b/models/o/no", 404, `"message":"No such object: models/no"`},
		{"GET", "/storage/v1/b/models/o/no?alt=media", 404, "No such object: models/no"},
		{"GET", "/storage/v1/b/nowhere/o/a", 404, `"message":"The specified bucket does not exist."`},
		{"GET", "/storage/v1/b/nowhere", 404, `"reason":"notFound"`},
		{"GET", "/storage/v1/b/models/o/a/acl/x", 404, `"reason":"notFound"`},
		{"POST", "/storage/v1/b/models/o?name=b", 400, `"reason":"wrongUrlForUpload"`},
		{"POST", "/upload/storage/v1/b/models/o?uploadType=media", 400, `"reason":"required"`},
		{"POST", "/upload/storage/v1/b/models/o?uploadType=x&name=b", 400, `"reason":"invalid"`},
		{"POST", "/upload/storage/v1/b/nowhere/o?uploadType=media&name=b", 404, `"reason":"notFound"`},
		{"GET", "/storage/v1/b/models/o/a?generation=-1", 400, `"reason":"invalid"`},
		{"PATCH", "/storage/v1/b/models/o/no", 404, `"reason":"notFound"`},
		{"DELETE", "/storage/v1/b/models/o/no", 404, `"reason":"notFound"`},
	} {
		a := h.ask(t, c.method, c.path, nil)
		if a.status != c.status || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
		}
	}
	a := h.ask(t, "GET", "/models/a", nil, "x-goog-encryption-algorithm: AES256")
	if a.status != 501 {
		t.Errorf("a client's key: %d", a.status)
	}
}

func TestDecompressiveTranscoding(t *testing.T) {
	h := start(t, t.TempDir())
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, strings.Repeat("weights ", 1000))
	z.Close()
	h.ask(t, "PUT", "/models/a", packed.Bytes(), "Content-Encoding: gzip", "Content-Type: text/plain").want(t, 200)
	for _, path := range both("a") {
		plain := h.ask(t, "GET", path, nil, "Range: bytes=0-3").want(t, 200)
		if string(plain.body) != strings.Repeat("weights ", 1000) || plain.header.Get("Content-Encoding") != "" || plain.header.Get("X-Goog-Stored-Content-Encoding") != "gzip" {
			t.Errorf("%s: %d bytes, %v", path, len(plain.body), plain.header)
		}
		raw := h.ask(t, "GET", path, nil, "Accept-Encoding: gzip").want(t, 200)
		if !bytes.Equal(raw.body, packed.Bytes()) || raw.header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: %d bytes, %v", path, len(raw.body), raw.header)
		}
		h.ask(t, "GET", path, nil, "Accept-Encoding: gzip", "Range: bytes=0-3").want(t, 206)
	}
}

// A reader that has begun keeps its generation, whatever happens to the name.
func TestReaderOutlivesItsObject(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	data := pattern(8 << 20)
	put(t, h.object("a"), data)
	r, err := h.object("a").NewReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 1000)
	if _, err := r.Read(head); err != nil {
		t.Fatal(err)
	}
	put(t, h.object("a"), []byte("other"))
	if err := h.object("a").Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	if _, err := rest.ReadFrom(r); err != nil {
		t.Fatal(err) // the client has compared the CRC32C of the whole
	}
	r.Close()
	if _, err := h.object("a").NewReader(t.Context()); err != storage.ErrObjectNotExist && status(err) != 404 {
		t.Errorf("after the delete: %v", err)
	}
}
