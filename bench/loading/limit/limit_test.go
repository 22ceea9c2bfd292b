package limit

import (
	"bytes"
	"errors"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/bench/loading/reading"
	"github.com/headstart-serving/headstart/manifest"
)

// model is one of three files, one of them empty, in chunks of 64 KiB.
func model(t *testing.T) (*manifest.Manifest, map[string][]byte) {
	t.Helper()
	m := &manifest.Manifest{Model: manifest.Model{Repo: "acme/small", Commit: strings.Repeat("a", 40)}, ChunkSize: 64 << 10}
	objects := map[string][]byte{}
	for _, f := range []struct {
		path string
		size int
	}{{"config.json", 10}, {"empty", 0}, {"sub/a b.safetensors", 3*64<<10 + 1}} {
		data := bytes.Repeat([]byte(f.path), f.size/len(f.path)+1)[:f.size]
		file := manifest.File{Path: f.path, Size: int64(f.size), SHA256: manifest.Sum(data), CRC32C: crc32.Checksum(data, manifest.Castagnoli)}
		for off := 0; off < len(data); off += 64 << 10 {
			file.Chunks = append(file.Chunks, crc32.Checksum(data[off:min(off+64<<10, len(data))], manifest.Castagnoli))
		}
		m.Files = append(m.Files, file)
		objects[m.Model.Object(f.path)] = data
	}
	raw, err := manifest.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	objects[m.Model.Key()] = raw
	return m, objects
}

func serve(t *testing.T, objects map[string][]byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := objects[strings.TrimPrefix(r.URL.Path, "/models/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/models"
}

func TestReceive(t *testing.T) {
	m, objects := model(t)
	dir := t.TempDir()
	n, err := Receive(t.Context(), Config{Bucket: serve(t, objects), Model: m.Model, Dir: dir, Streams: 2})
	if err != nil || n != m.Size() {
		t.Fatalf("%d bytes, %v", n, err)
	}
	for _, f := range m.Files {
		got, err := os.ReadFile(filepath.Join(dir, f.Path))
		if err != nil || !bytes.Equal(got, objects[m.Model.Object(f.Path)]) {
			t.Errorf("%s: %d bytes, %v", f.Path, len(got), err)
		}
	}
	sums, err := reading.Files(t.Context(), dir, []string{"config.json", "empty", "sub/a b.safetensors"})
	if err != nil {
		t.Fatal(err)
	}
	if err := reading.Check(m, sums); err != nil {
		t.Error(err)
	}
	sums["config.json"]++
	if err := reading.Check(m, sums); !strings.Contains(errString(err), "config.json") {
		t.Errorf("wrong bytes: %v", err)
	}
	delete(sums, "config.json")
	if err := reading.Check(m, sums); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("a file that was not read: %v", err)
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestReceiveWrong: what a bucket does wrong is an error that names the object, and no hang.
func TestReceiveWrong(t *testing.T) {
	for name, spoil := range map[string]func(map[string][]byte, string){
		"a wrong byte":    func(o map[string][]byte, k string) { o[k][100000]++ },
		"a byte less":     func(o map[string][]byte, k string) { o[k] = o[k][:len(o[k])-2] },
		"no such object":  func(o map[string][]byte, k string) { delete(o, k) },
		"only one chunk":  func(o map[string][]byte, k string) { o[k] = o[k][:64<<10] },
		"half of a chunk": func(o map[string][]byte, k string) { o[k] = o[k][:32<<10] },
	} {
		m, objects := model(t)
		spoil(objects, m.Model.Object("sub/a b.safetensors"))
		_, err := Receive(t.Context(), Config{Bucket: serve(t, objects), Model: m.Model, Dir: t.TempDir()})
		if !strings.Contains(errString(err), "a%20b.safetensors") {
			t.Errorf("%s: %v", name, err)
		}
	}
	m, objects := model(t)
	delete(objects, m.Model.Key())
	if _, err := Receive(t.Context(), Config{Bucket: serve(t, objects), Model: m.Model, Dir: t.TempDir()}); !strings.Contains(errString(err), "404") {
		t.Errorf("no manifest: %v", err)
	}
}
