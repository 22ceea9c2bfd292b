package gemma

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/headstart-serving/headstart/stager/hub"
)

var _ hub.Repo = (*Repo)(nil)

var sizes = []string{"270m", "1b", "4b", "12b", "27b"}

func repo(t testing.TB, size string, seed uint64) *Repo {
	t.Helper()
	r, err := New(size, seed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func file(t testing.TB, r *Repo, path string) hub.File {
	t.Helper()
	for _, f := range r.Files() {
		if f.Path == path {
			return f
		}
	}
	t.Fatalf("%s has no %s", r.Name(), path)
	panic("unreachable")
}

// content reads a whole file.
func content(t testing.TB, r *Repo, path string) []byte {
	t.Helper()
	b := make([]byte, file(t, r, path).Size)
	readAt(t, r, path, b, 0)
	return b
}

func readAt(t testing.TB, r *Repo, path string, p []byte, off int64) {
	t.Helper()
	f, err := r.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
		t.Fatalf("%s %s: ReadAt(%d bytes, %d) = %d, %v", r.Name(), path, len(p), off, n, err)
	}
}

// The sizes of files of the real repositories.
func TestPublishedSizes(t *testing.T) {
	published := map[string]map[string]int64{
		"270m": {"model.safetensors": 536_223_056},
		"1b": {"model.safetensors": 1_999_811_208, "tokenizer.json": 33_384_568, "tokenizer.model": 4_689_074,
			"config.json": 899, "generation_config.json": 215, "special_tokens_map.json": 662, "added_tokens.json": 35},
		"4b": {"config.json": 855,
			"model-00001-of-00002.safetensors": 4_961_251_752,
			"model-00002-of-00002.safetensors": 3_639_026_128},
		"12b": {"config.json": 916,
			"model-00001-of-00005.safetensors": 4_979_902_192,
			"model-00002-of-00005.safetensors": 4_931_296_592,
			"model-00003-of-00005.safetensors": 4_931_296_656,
			"model-00004-of-00005.safetensors": 4_931_296_656,
			"model-00005-of-00005.safetensors": 4_601_000_928},
		"27b": {"config.json": 972,
			"model-00001-of-00012.safetensors": 4_854_573_696,
			"model-00002-of-00012.safetensors": 4_954_792_944,
			"model-00003-of-00012.safetensors": 4_954_792_976,
			"model-00004-of-00012.safetensors": 4_954_793_016,
			"model-00008-of-00012.safetensors": 4_954_793_016,
			"model-00011-of-00012.safetensors": 4_954_793_016,
			"model-00012-of-00012.safetensors": 462_476_696},
	}
	for size, files := range published {
		r := repo(t, size, 0)
		for path, want := range files {
			if got := file(t, r, path).Size; got != want {
				t.Errorf("%s %s: %d bytes, published %d", size, path, got, want)
			}
		}
	}
}

func TestFileNames(t *testing.T) {
	common := ".gitattributes README.md added_tokens.json config.json generation_config.json special_tokens_map.json" +
		" tokenizer.json tokenizer.model tokenizer_config.json "
	vision := common + "chat_template.json model.safetensors.index.json preprocessor_config.json processor_config.json "
	for size, names := range map[string]string{
		"270m": common + "chat_template.jinja model.safetensors",
		"1b":   common + "model.safetensors",
		"4b":   vision + "model-00001-of-00002.safetensors model-00002-of-00002.safetensors",
	} {
		var got []string
		for _, f := range repo(t, size, 0).Files() {
			got = append(got, f.Path)
		}
		want := strings.Fields(names)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has\n%q, want\n%q", size, got, want)
		}
	}
}

// A safetensors header, as any reader of the format sees it.
type entry struct {
	Type  string   `json:"dtype"`
	Shape []int64  `json:"shape"`
	Place [2]int64 `json:"data_offsets"`
}

// header reads a file's header as far as the format's rules go: length first, entries by name, data without gaps.
func header(t testing.TB, r *Repo, path string) (entries map[string]entry, data int64) {
	t.Helper()
	var length [8]byte
	readAt(t, r, path, length[:], 0)
	n := int64(binary.LittleEndian.Uint64(length[:]))
	if n%8 != 0 || n > 1<<20 {
		t.Fatalf("%s: header of %d bytes", path, n)
	}
	text := make([]byte, n)
	readAt(t, r, path, text, 8)
	if text[0] != '{' {
		t.Fatalf("%s: header begins with %q", path, text[:1])
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		t.Fatal(err)
	}
	if got := string(raw["__metadata__"]); got != `{"format":"pt"}` {
		t.Errorf("%s: metadata %s", path, got)
	}
	delete(raw, "__metadata__")
	entries = map[string]entry{}
	for name, m := range raw {
		var e entry
		if err := json.Unmarshal(m, &e); err != nil {
			t.Fatal(err)
		}
		entries[name] = e
	}
	return entries, 8 + n
}

func TestTensors(t *testing.T) {
	for _, test := range []struct {
		size          string
		tensors       int
		bytes         int64
		files         int
		name          string
		first, second int64 // a shape
	}{
		{"270m", 236, 536_196_352, 1, "model.layers.17.mlp.down_proj.weight", 640, 2048},
		{"1b", 340, 1_999_771_904, 1, "model.layers.25.self_attn.k_proj.weight", 256, 1152},
		{"4b", 883, 8_600_158_944, 2, "language_model.model.embed_tokens.weight", 262208, 2560},
		{"12b", 1065, 24_374_650_080, 5, "language_model.model.layers.47.self_attn.o_proj.weight", 3840, 4096},
		{"27b", 1247, 54_864_813_280, 12, "vision_tower.vision_model.encoder.layers.26.mlp.fc1.weight", 4304, 1152},
	} {
		t.Run(test.size, func(t *testing.T) {
			r := repo(t, test.size, 0)
			all, where, total, files := map[string]entry{}, map[string]string{}, int64(0), 0
			for _, f := range r.Files() {
				if !strings.HasSuffix(f.Path, ".safetensors") {
					continue
				}
				files++
				entries, data := header(t, r, f.Path)
				total += checkPlaces(t, f, entries, data)
				for name, e := range entries {
					all[name], where[name] = e, f.Path
				}
			}
			if len(all) != test.tensors || total != test.bytes || files != test.files {
				t.Errorf("%d tensors, %d bytes, %d files; want %d, %d, %d",
					len(all), total, files, test.tensors, test.bytes, test.files)
			}
			if e := all[test.name]; !slices.Equal(e.Shape, []int64{test.first, test.second}) {
				t.Errorf("%s: shape %d, want [%d %d]", test.name, e.Shape, test.first, test.second)
			}
			if files > 1 {
				checkIndex(t, r, where, total)
			}
		})
	}
}

// checkPlaces checks that the tensors of a file are in the order of their names, fill it, and have the size of their
// shape. It returns their bytes.
func checkPlaces(t *testing.T, f hub.File, entries map[string]entry, data int64) (end int64) {
	t.Helper()
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e, n := entries[name], int64(2)
		for _, d := range e.Shape {
			n *= d
		}
		if e.Type != "BF16" || e.Place != [2]int64{end, end + n} {
			t.Errorf("%s: %+v, want BF16 of %d bytes from %d", name, e, n, end)
		}
		end += n
	}
	if data+end != f.Size {
		t.Errorf("%s: tensors end at %d of %d", f.Path, data+end, f.Size)
	}
	return end
}

func checkIndex(t *testing.T, r *Repo, where map[string]string, total int64) {
	t.Helper()
	var index struct {
		Metadata struct {
			Size int64 `json:"total_size"`
		} `json:"metadata"`
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(content(t, r, "model.safetensors.index.json"), &index); err != nil {
		t.Fatal(err)
	}
	if index.Metadata.Size != total || len(index.Map) != len(where) {
		t.Errorf("index has %d bytes in %d tensors, want %d in %d", index.Metadata.Size, len(index.Map), total, len(where))
	}
	for name, path := range where {
		if index.Map[name] != path {
			t.Errorf("index has %s in %q, it is in %q", name, index.Map[name], path)
		}
	}
}

func TestIdentity(t *testing.T) {
	seen := map[string]string{}
	for _, size := range sizes {
		for _, seed := range []uint64{0, 1} {
			r, again := repo(t, size, seed), repo(t, size, seed)
			c := r.Commit()
			if len(c) != 40 || strings.Trim(c, "0123456789abcdef") != "" {
				t.Errorf("commit %q", c)
			}
			if seen[c] != "" {
				t.Errorf("%s with seed %d has the commit of %s", size, seed, seen[c])
			}
			seen[c] = size
			if r.Name() != "google/gemma-3-"+size+"-it" || again.Commit() != c || !again.LastModified().Equal(r.LastModified()) {
				t.Errorf("%s at %s, then %s at %s", r.Name(), c, again.Name(), again.Commit())
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, size := range []string{"", "2b", "270M", "gemma-3-1b"} {
		if _, err := New(size, 0); err == nil || !strings.Contains(err.Error(), "27b") {
			t.Errorf("New(%q): %v", size, err)
		}
	}
	r := repo(t, "4b", 0)
	for _, path := range []string{"", "model.safetensors", "../config.json", "/config.json", "model-00003-of-00002.safetensors"} {
		if f, err := r.Open(path); f != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q): %v, %v", path, f, err)
		}
	}
}

// Small files are what git hashes: their bytes, digests and sizes agree.
func TestSmallFiles(t *testing.T) {
	for _, size := range sizes {
		r := repo(t, size, 0)
		for _, f := range r.Files() {
			large := strings.HasSuffix(f.Path, ".safetensors") || f.Path == "tokenizer.json" || f.Path == "tokenizer.model"
			if f.LFS != large {
				t.Errorf("%s %s: LFS %t", size, f.Path, f.LFS)
			}
			if f.LFS {
				continue
			}
			b := content(t, r, f.Path)
			if sum, err := f.SHA256(); err != nil || sum != sha256.Sum256(b) || f.GitSHA1 != hub.GitSHA1(b) {
				t.Errorf("%s %s: digests differ (%v)", size, f.Path, err)
			}
			if strings.HasSuffix(f.Path, ".json") && !json.Valid(b) {
				t.Errorf("%s %s is not JSON", size, f.Path)
			}
			if !bytes.HasSuffix(b, []byte("}\n")) && strings.HasSuffix(f.Path, ".json") {
				t.Errorf("%s %s ends with %q", size, f.Path, b[len(b)-4:])
			}
		}
	}
}

// A digest that is not known is found by reading the file, once, however many ask at a time.
func TestDigestOnce(t *testing.T) {
	want := sha256.Sum256([]byte("weights"))
	var opened atomic.Int32
	r := &Repo{size: "270m", open: map[string]func() io.ReaderAt{}}
	r.large("model.safetensors", 7, false, func() io.ReaderAt {
		opened.Add(1)
		return strings.NewReader("weights")
	})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if sum, err := r.files[0].SHA256(); err != nil || sum != want {
				t.Errorf("%x, %v", sum, err)
			}
		})
	}
	group.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

func TestDigestOfShortFile(t *testing.T) {
	if _, err := digest(strings.NewReader("weigh"), 7); err == nil {
		t.Error("no error for a file that is shorter than its size")
	}
}
