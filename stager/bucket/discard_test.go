package bucket_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/storage"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/bucket"
)

// startDiscarding is start with a server that drops what it has summed.
func startDiscarding(t testing.TB, dir string) *host {
	t.Helper()
	h := start(t, dir)
	h.Discard, h.OmitMD5 = true, true
	return h
}

// stored returns the bytes of all blobs below dir.
func stored(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Base(filepath.Dir(path)) == "blobs" {
			info, err := d.Info()
			if err != nil {
				return err
			}
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// refusesRead fails the test when the object's bytes are anything but refused, once and in clear words.
func (h *host) refusesRead(t testing.TB, o, ranged string) {
	t.Helper()
	for _, path := range []string{"/" + name + "/" + o, "/download/storage/v1/b/" + name + "/o/" + o + "?alt=media"} {
		a := h.ask(t, "GET", path, nil, "Range: "+ranged).want(t, 410)
		if !strings.Contains(string(a.body), "has dropped these bytes") {
			t.Errorf("%s %s: %s", path, ranged, a.body)
		}
	}
}

// TestDiscard is about every size around the one that is kept: what an upload says of itself is as ever,
// and only the bytes are gone.
func TestDiscard(t *testing.T) {
	const kept = 1 << 20
	for _, n := range []int{0, 1, kept - 1, kept, kept + 1, kept + 512<<10, 3*kept + 7} {
		dir := t.TempDir()
		h := startDiscarding(t, dir)
		data := pattern(n)
		crc := crc32.Checksum(data, manifest.Castagnoli)
		media := h.ask(t, "POST", "/upload/storage/v1/b/"+name+"/o?uploadType=media&name=media", data).want(t, 200)
		if want := fmt.Sprintf(`"size":"%d"`, n); !strings.Contains(string(media.body), want) {
			t.Errorf("%d bytes: %s", n, media.body)
		}
		w := h.object("resumable").NewWriter(t.Context())
		w.ChunkSize, w.SendCRC32C, w.CRC32C = 256<<10, true, crc
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, o := range []string{"media", "resumable"} {
			a, err := h.object(o).Attrs(t.Context())
			if err != nil || a.Size != int64(n) || a.CRC32C != crc {
				t.Fatalf("%s of %d bytes: %+v, %v", o, n, a, err)
			}
			if n <= kept {
				if got := get(t, h.object(o), 0, -1); !bytes.Equal(got, data) {
					t.Errorf("%s of %d bytes: %d come back", o, n, len(got))
				}
				continue
			}
			h.refusesRead(t, o, fmt.Sprintf("bytes=0-%d", n-1))
			h.refusesRead(t, o, "bytes=0-0")
			h.refusesRead(t, o, "bytes=-1")
			if _, err := h.object(o).NewReader(t.Context()); status(err) != http.StatusGone {
				t.Errorf("reading %s of %d bytes: %v", o, n, err)
			}
			head := h.ask(t, "HEAD", "/"+name+"/"+o, nil).want(t, 200)
			if got := head.header.Get("Content-Length"); got != fmt.Sprint(n) {
				t.Errorf("HEAD says %s bytes, want %d", got, n)
			}
		}
		want := int64(2 * n)
		if n > kept {
			want = 0
		}
		if got := stored(t, dir); got != want {
			t.Errorf("two objects of %d bytes take %d, want %d", n, got, want)
		}
	}
}

// TestDiscardChecks: a body that is not what was declared is refused as ever.
func TestDiscardChecks(t *testing.T) {
	h := startDiscarding(t, t.TempDir())
	data := pattern(3 << 20)
	w := h.object("a").NewWriter(t.Context())
	w.SendCRC32C, w.CRC32C = true, 1
	if _, err := w.Write(data); err == nil {
		err = w.Close()
		if err == nil {
			t.Error("a wrong crc32c is accepted")
		}
	}
	sum := md5.Sum(data)
	good, bad := base64.StdEncoding.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(make([]byte, 16))
	h.ask(t, "PUT", "/"+name+"/b", data, "Content-MD5: "+good).want(t, 200)
	h.ask(t, "PUT", "/"+name+"/b", data, "Content-MD5: "+bad).want(t, 400)
	// An MD5 that comes with the last request is one that nobody counted from the start.
	u := h.begin(t, "c")
	h.chunk(t, u, data, 0, 2<<20, "*").want(t, 308)
	a := h.chunk(t, u, data, 2<<20, 3<<20, fmt.Sprint(3<<20), "X-Goog-Hash: md5="+good).want(t, 400)
	if !strings.Contains(string(a.body), "declare their MD5 when the upload begins") {
		t.Errorf("%s", a.body)
	}
}

// TestDiscardCompose joins what is kept and what is not, and reads what can be read, also after a restart.
func TestDiscardCompose(t *testing.T) {
	dir := t.TempDir()
	h := startDiscarding(t, dir)
	var whole []byte
	var parts []*storage.ObjectHandle
	for i, n := range []int{1000, 2 << 20, 500, 3<<20 + 1} {
		part := pattern(n)
		whole = append(whole, part...)
		parts = append(parts, h.object(fmt.Sprint("part", i)))
		put(t, parts[i], part)
	}
	a, err := h.object("whole").ComposerFrom(parts...).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := crc32.Checksum(whole, manifest.Castagnoli); a.CRC32C != want || a.Size != int64(len(whole)) {
		t.Errorf("crc32c %08x of %d bytes, want %08x of %d", a.CRC32C, a.Size, want, len(whole))
	}
	if err := h.CreateBucket("other"); err != nil {
		t.Fatal(err)
	}
	there := h.client.Bucket("other").Object("copy")
	if _, err := there.CopierFrom(h.object("whole")).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.object("copy").CopierFrom(there).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	look := func(h *host) {
		t.Helper()
		for _, o := range []string{"whole", "copy"} {
			const middle = 1000 + 2<<20
			for _, r := range [][2]int64{{0, 1000}, {middle, 500}, {999, 1}} {
				if got := get(t, h.object(o), r[0], r[1]); !bytes.Equal(got, whole[r[0]:r[0]+r[1]]) {
					t.Errorf("%s: wrong bytes at %d", o, r[0])
				}
			}
			for _, r := range []string{"bytes=999-1000", "bytes=1000-1000", "bytes=5000-5001", fmt.Sprintf("bytes=%d-%d", middle-1, middle), fmt.Sprintf("bytes=%d-", middle+499)} {
				h.refusesRead(t, o, r)
			}
		}
	}
	look(h)
	h.Close()
	s, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	look(serve(t, s)) // what is gone stays gone, and is said to be, also by a server that keeps everything
}

// TestDiscardRestart: an unfinished upload begins anew, and says so.
func TestDiscardRestart(t *testing.T) {
	dir := t.TempDir()
	h := startDiscarding(t, dir)
	data := pattern(3 << 20)
	u := h.begin(t, "a")
	h.chunk(t, u, data, 0, 2<<20, "*").want(t, 308)
	if got := h.probe(t, u); got != "bytes=0-2097151" {
		t.Errorf("kept %s", got)
	}
	h.Close()
	s, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Discard, s.OmitMD5 = true, true
	h = serve(t, s)
	u = h.URL + u[strings.Index(u, "/upload/"):]
	if got := h.probe(t, u); got != "" {
		t.Errorf("kept %s after a restart", got)
	}
	h.chunk(t, u, data, 0, 3<<20, fmt.Sprint(3<<20)).want(t, 200)
	a, err := h.object("a").Attrs(t.Context())
	if err != nil || a.CRC32C != crc32.Checksum(data, manifest.Castagnoli) {
		t.Errorf("%+v, %v", a, err)
	}
}
