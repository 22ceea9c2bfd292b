package bucket_test

import (
	"bytes"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// Object names are any text: none of them leads out of the directory, and each comes back as it was.
func TestHostileNames(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	h := start(t, root)
	list := []string{
		"..\x00", "../../escape", "/etc/passwd", "//", "/", "a/../../b", "a//b", "./a", "a/.", "...", " ", "a b+c%2Fd?e#f&g=h", "%2e%2e%2f",
		"\x01", "\t", "ü/é", "\u202e", "C:\\x", "CON", "a\\b", strings.Repeat("n", 1024), strings.Repeat("d/", 512), strings.Repeat("é", 512), "bucket.json", "o", "compose",
	}
	for i, o := range list {
		want := []byte(o + "!")
		if i%2 == 0 {
			put(t, h.object(o), want)
		} else {
			h.ask(t, "PUT", "/models/"+url.PathEscape(o), want).want(t, 200)
		}
		if got := get(t, h.object(o), 0, -1); !bytes.Equal(got, want) {
			t.Errorf("%q: read %q", o, got)
		}
		if r := h.ask(t, "GET", "/storage/v1/b/models/o/"+url.PathEscape(o), nil).want(t, 200).resource(t); r.Name != o {
			t.Errorf("%q came back as %q", o, r.Name)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir && !strings.HasPrefix(path, root) {
			t.Errorf("outside: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		h.ask(t, "DELETE", "/storage/v1/b/models/o/"+url.PathEscape(o), nil).want(t, 204)
	}
	if got := leftovers(t, root); strings.Contains(got, "blobs") || strings.Contains(got, "objects") {
		t.Errorf("left on disk: %s", got)
	}
}

func TestRefusedNames(t *testing.T) {
	h := start(t, t.TempDir())
	for _, o := range []string{strings.Repeat("n", 1025), strings.Repeat("é", 513), ".", "..", "a\nb", "a\rb", "\xff", ".well-known/acme-challenge/x"} {
		for _, a := range []answer{
			h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=media&name="+url.QueryEscape(o), nil),
			h.ask(t, "PUT", "/models/"+url.PathEscape(o), nil),
			h.ask(t, "POST", "/storage/v1/b/models/o/"+url.PathEscape(o)+"/compose", []byte(`{"sourceObjects":[{"name":"a"}]}`)),
		} {
			if a.status != 400 {
				t.Errorf("%q: %d %s", o, a.status, a.body)
			}
		}
	}
	r := h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=media&name="+strings.Repeat("n", 1025), nil).want(t, 400).resource(t)
	if !strings.Contains(r.Error.Message, "1024 characters, but got a name with 1025 characters") {
		t.Errorf("%s", r.Error.Message)
	}
	meta := `{"name":"a","metadata":{"k":"` + strings.Repeat("v", 8<<10) + `"}}`
	h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=resumable", []byte(meta)).want(t, 400)
	h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=resumable", []byte(`{"name":1`)).want(t, 400)
	h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=resumable", bytes.Repeat([]byte(" "), 2<<20)).want(t, 400)
}
