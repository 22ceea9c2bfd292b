package manifest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

var update = flag.Bool("update", false, "write the golden files anew")

const commit = "093f9f388b31de276ce2de164bdc2081324b9767"

// fileOf describes content as a stager would.
func fileOf(path string, content []byte, chunkSize int64) manifest.File {
	f := manifest.File{Path: path, Size: int64(len(content)), SHA256: sha256.Sum256(content), CRC32C: crc32.Checksum(content, manifest.Castagnoli)}
	for len(content) > 0 {
		n := min(int64(len(content)), chunkSize)
		f.Chunks = append(f.Chunks, crc32.Checksum(content[:n], manifest.Castagnoli))
		content = content[n:]
	}
	return f
}

func example(t testing.TB) *manifest.Manifest {
	t.Helper()
	const size = 64 << 10
	r := rand.NewChaCha8([32]byte{1})
	content := make([]byte, 2*size+1)
	if _, err := r.Read(content); err != nil {
		t.Fatal(err)
	}
	return &manifest.Manifest{
		Model:     manifest.Model{Repo: "google/gemma-3-4b-it", Commit: commit},
		ChunkSize: size,
		Files: []manifest.File{
			fileOf("config.json", []byte(`{"a":1}`), size),
			fileOf("empty", nil, size),
			fileOf("model-00001-of-00002.safetensors", content, size),
			fileOf("sub/<dir>/größe & \"quote\".txt", content[:size], size),
		},
	}
}

func marshal(t testing.TB, m *manifest.Manifest) []byte {
	t.Helper()
	b, err := manifest.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	got := marshal(t, example(t))
	golden := filepath.Join("testdata", "v1.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the encoding changed, so every pin that is in use broke:\n%s", got)
	}
	m, err := manifest.Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(marshal(t, m), want) {
		t.Error("parse and marshal is not the identity")
	}
	if m.Size() != 7+2*65536+1+65536 || m.File("empty") == nil || m.File("nothing") != nil {
		t.Errorf("Size %d, File(empty) %v", m.Size(), m.File("empty"))
	}
	var n int64
	for c := range m.ChunksOf(2) {
		n += c.Size
		if err := m.Check(c, c.CRC32C); err != nil {
			t.Error(err)
		}
		var mismatch *manifest.MismatchError
		if err := m.Check(c, c.CRC32C+1); !errors.As(err, &mismatch) || mismatch.Offset != c.Offset {
			t.Errorf("a wrong sum gives %v", err)
		}
	}
	if n != m.Files[2].Size {
		t.Errorf("the chunks have %d bytes, the file %d", n, m.Files[2].Size)
	}
}

// TestParseRefuses damages a good manifest, one thing at a time.
func TestParseRefuses(t *testing.T) {
	good := string(marshal(t, example(t)))
	lastChunk := good[len(good)-14 : len(good)-6]
	for _, test := range []struct{ name, old, new, want string }{
		{"version", `"version":1`, `"version":2`, "version 2"},
		{"no version", `"version":1,`, ``, "no version"},
		{"unknown field", `"version":1`, `"version":1,"extra":0`, "unknown field"},
		{"key twice", `"version":1`, `"version":1,"version":1`, "byte "},
		{"key in other case", `"model"`, `"Model"`, "byte "},
		{"white space", `"version":1`, `"version": 1`, "byte "},
		{"trailing", "]}\n", "]}\n\n", "byte "},
		{"trailing object", "]}\n", "]}\n{}\n", "invalid character"},
		{"repo", `google/gemma-3-4b-it`, `../../etc`, "org/name"},
		{"repo in three parts", `google/gemma-3-4b-it`, `a/b/c`, "org/name"},
		{"commit", commit, `main`, "commit"},
		{"commit in upper case", commit, strings.ToUpper(commit), "commit"},
		{"chunk size 0", `"chunk_size":65536`, `"chunk_size":0`, "chunk_size"},
		{"chunk size no power", `"chunk_size":65536`, `"chunk_size":65537`, "chunk_size"},
		{"traversal", `"path":"empty"`, `"path":"../empty"`, `file 1, "../empty"`},
		{"absolute", `"path":"empty"`, `"path":"/empty"`, `file 1, "/empty"`},
		{"NUL", `"path":"empty"`, `"path":"em\u0000pty"`, "does not print"},
		{"dot", `"path":"empty"`, `"path":"d/./e"`, `segment "."`},
		{"backslash", `"path":"empty"`, `"path":"d\\e"`, "backslash"},
		{"bidi", `"path":"empty"`, `"path":"d\u202ee"`, "does not print"},
		{"long", `"path":"empty"`, `"path":"` + strings.Repeat("e", 5000) + `"`, "5000 bytes"},
		{"long segment", `"path":"empty"`, `"path":"` + strings.Repeat("e", 256) + `"`, "256 bytes"},
		{"own prefix", `"path":"empty"`, `"path":".headstart/x"`, "headstart's own"},
		{"duplicate", `"path":"empty"`, `"path":"config.json"`, "does not come after"},
		{"order", `"path":"empty"`, `"path":"a"`, "does not come after"},
		{"case", `"path":"config.json"`, `"path":"EMPTY"`, "by case only"},
		{"file and directory", `"path":"empty"`, `"path":"config.json/x"`, "not a directory"},
		{"size negative", `"size":7,`, `"size":-7,`, "negative"},
		{"size zero", `"size":7,`, `"size":0,`, `file 0, "config.json": 1 chunks for 0 bytes`},
		{"size above int64", `"size":7,`, `"size":9223372036854775808,`, "cannot unmarshal"},
		{"size not whole", `"size":7,`, `"size":7.0,`, "cannot unmarshal"},
		{"size one more", `"size":131073,`, `"size":131074,`, "add up to"},
		{"size a chunk more", `"size":131073,`, `"size":200000,`, "3 chunks for 200000 bytes in chunks of 65536: want 4"},
		{"sha256 short", `"sha256":"`, `"sha256":"0`, "is not a sha256"},
		{"crc32c", `"crc32c":"`, `"crc32c":"0`, "crc32c"},
		{"chunk missing", lastChunk + `"}` + "\n]", `"}` + "\n]", "0 chunks"},
		{"chunk twice", lastChunk + `"}` + "\n]", lastChunk + lastChunk + `"}` + "\n]", "2 chunks"},
		{"chunk of other bytes", lastChunk + `"}` + "\n]", `00000000"}` + "\n]", "add up to"},
		{"no files", good[strings.Index(good, "[")+1 : strings.LastIndex(good, "\n]")], ``, "no files"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := strings.Replace(good, test.old, test.new, 1)
			if bad == good {
				t.Fatal("the test changes nothing")
			}
			_, err := manifest.Parse([]byte(bad))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			if err != nil && len(err.Error()) > 500 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
	var v *manifest.VersionError
	if _, err := manifest.Parse([]byte(strings.Replace(good, `"version":1`, `"version":7`, 1))); !errors.As(err, &v) || v.Version != 7 {
		t.Errorf("got %v, want a VersionError", err)
	}
}

func TestSizesThatOverflow(t *testing.T) {
	m := example(t)
	m.ChunkSize = 1 << 30
	for i := range m.Files {
		m.Files[i].Size = 1<<63 - 1
		m.Files[i].Chunks = nil
	}
	if err := m.Validate(); err == nil {
		t.Error("accepted")
	}
}

func TestMarshalRefusesWhatParseWould(t *testing.T) {
	m := example(t)
	m.Files = nil
	for i := range 130_000 {
		m.Files = append(m.Files, manifest.File{Path: fmt.Sprintf("%06d", i)})
	}
	if b, err := manifest.Marshal(m); err == nil {
		t.Errorf("made %d bytes", len(b))
	}
}

func TestCombineCRC32C(t *testing.T) {
	data := make([]byte, 300_000)
	r := rand.NewChaCha8([32]byte{2})
	if _, err := r.Read(data); err != nil {
		t.Fatal(err)
	}
	sum := func(b []byte) uint32 { return crc32.Checksum(b, manifest.Castagnoli) }
	for _, n := range []int{0, 1, 2, 3, 4, 255, 256, 65535, 65536, 65537, len(data) - 1, len(data)} {
		if got, want := manifest.CombineCRC32C(sum(data[:n]), sum(data[n:]), int64(len(data)-n)), sum(data); got != want {
			t.Errorf("cut at %d: %08x, want %08x", n, got, want)
		}
	}
}

func TestReference(t *testing.T) {
	pin := strings.Repeat("0a", 32)
	for _, s := range []string{"gpt2", "google/gemma-3-4b-it", "a/b@main", "a/b@" + commit, "a/b@refs/pr/1", "a/b@v1.0", "a/b@sha256:" + pin} {
		r, err := manifest.ParseReference(s)
		if err != nil || r.String() != s {
			t.Errorf("%q: %q, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "/", "a/", "/b", "a/b/c", "a b", "a/..", "../b", "-a/b", ".headstart/b", "a/refs", "parts/a", "parts", "a/b@", "a/b@sha256:", "a/b@sha256:" + pin[1:], "a/b@sha256:" + strings.Repeat("0", 64), "a/b@a b", "a/b@a@b", "a/b@../x", "a/b@x\x00", "a/b@" + strings.Repeat("x", 256)} {
		if r, err := manifest.ParseReference(s); err == nil {
			t.Errorf("%q is accepted as %q", s, r)
		}
	}
}

func TestKeys(t *testing.T) {
	m := manifest.Model{Repo: "google/gemma", Commit: commit}
	for got, want := range map[string]string{
		m.Object("a/b"): "google/gemma/" + commit + "/a/b",
		m.Key():         ".headstart/google/gemma/" + commit + ".json",
		manifest.RefKey("google/gemma", "refs/pr/1"):     ".headstart/google/gemma/refs/refs%2Fpr%2F1",
		manifest.RefKey("google/gemma", "refs%2Fpr%2F1"): ".headstart/google/gemma/refs/refs%252Fpr%252F1",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(marshal(f, example(f)))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if err != nil {
			return
		}
		again, err := manifest.Marshal(m)
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("parse and marshal is not the identity: %v", err)
		}
		var total int64
		for i := range m.Files {
			for c := range m.ChunksOf(i) {
				total += c.Size
			}
		}
		if total != m.Size() {
			t.Errorf("the chunks have %d bytes, the files %d", total, m.Size())
		}
	})
}

func FuzzReference(f *testing.F) {
	f.Add("google/gemma@main")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := manifest.ParseReference(s)
		if err != nil {
			return
		}
		if r.String() != s {
			t.Errorf("%q becomes %q", s, r)
		}
	})
}
