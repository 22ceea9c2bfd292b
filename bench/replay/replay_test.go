package replay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// shard makes a safetensors file whose tensors stand in the order given, with these sizes in bytes.
func shard(rng *rand.ChaCha8, names []string, sizes []int) []byte {
	header, at := map[string]any{"__metadata__": map[string]string{"format": "pt"}}, 0
	for i, n := range names {
		header[n] = map[string]any{"dtype": "U8", "shape": []int{sizes[i]}, "data_offsets": []int{at, at + sizes[i]}}
		at += sizes[i]
	}
	text, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	data := make([]byte, at)
	rng.Read(data)
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text, data)
}

const weightBytes = 3*1000 + 2000 + step + 1 + 5

// model writes a small model and returns its directory and its sums. Shard 10 comes after shard 2
// only in natural order; in shard 2 the order of names is not the order of offsets.
func model(t *testing.T) (string, map[string]manifest.Digest) {
	t.Helper()
	dir, rng := t.TempDir(), rand.NewChaCha8([32]byte{1})
	files := map[string][]byte{
		"model-1-of-10.safetensors":  shard(rng, []string{"a", "b"}, []int{1000, 1000}),
		"model-2-of-10.safetensors":  shard(rng, []string{"z", "c"}, []int{1000, 2000}),
		"model-10-of-10.safetensors": shard(rng, []string{"d", "e"}, []int{step + 1, 5}),
		"config.json":                []byte(`{}`),
		"tokenizer.json":             make([]byte, 3*step/2),
		"README.md":                  []byte("read me"),
		"empty":                      nil,
		"original/params.json":       []byte("{}"),
		indexName: []byte(`{"weight_map":{"a":"model-1-of-10.safetensors","b":"model-1-of-10.safetensors",
			"z":"model-2-of-10.safetensors","c":"model-2-of-10.safetensors","d":"model-10-of-10.safetensors","e":"model-10-of-10.safetensors"}}`),
	}
	rng.Read(files["tokenizer.json"])
	want := map[string]manifest.Digest{}
	for path, b := range files {
		put(t, dir, path, b)
		want[path] = sha256.Sum256(b)
	}
	return dir, want
}

func put(t *testing.T, dir, path string, b []byte) {
	t.Helper()
	path = filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRunReadsAndVerifiesEverything(t *testing.T) {
	dir, want := model(t)
	put(t, dir, ".headstart/state", []byte("of fetch")) // no part of the model
	var reported []string
	r, err := Run(t.Context(), Config{Dir: dir, Want: want, Report: func(p Phase) { reported = append(reported, p.Name) }})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Verified || r.Weights != weightBytes || r.Shards != 3 || r.Tensors != 6 || len(r.Files) != len(want) {
		t.Errorf("%+v", r)
	}
	for _, f := range r.Files {
		if !f.OK {
			t.Errorf("%s is not verified", f.Path)
		}
	}
	if order := []string{Start, Imports, Weights, Again, Check}; !slices.Equal(reported, order) {
		t.Errorf("phases %v, want %v", reported, order)
	}
	var all int64
	for path := range want {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		all += info.Size()
	}
	if got := r.Phase(Check).Bytes; got != all {
		t.Errorf("checked %d bytes of %d", got, all)
	}
	if s, w := r.Phase(Start), r.Phase(Weights); r.Phase(Again).Bytes != s.Bytes+w.Bytes || r.Bytes != s.Bytes+w.Bytes {
		t.Errorf("read %d and %d bytes, again %d", s.Bytes, w.Bytes, r.Phase(Again).Bytes)
	}
}

// TestDirect: the same bytes without a mapping, from a file system that takes O_DIRECT and from one that refuses it.
func TestDirect(t *testing.T) {
	for _, sizes := range [][]int{{1}, {piece - 1000}, {piece}, {2*piece + 4097}, {pieces * piece, 1}} {
		dir := t.TempDir()
		names := []string{"a", "b"}[:len(sizes)]
		data, text := shard(rand.NewChaCha8([32]byte{3}), names, sizes), []byte("{}")
		put(t, dir, "a.safetensors", data)
		put(t, dir, "config.json", text)
		want := map[string]manifest.Digest{"a.safetensors": sha256.Sum256(data), "config.json": sha256.Sum256(text)}
		r, err := Run(t.Context(), Config{Dir: dir, Want: want, Direct: true})
		if err != nil || !r.Verified || r.First == 0 {
			t.Fatalf("%v: %+v, %v", sizes, r, err)
		}
		opened := 2
		if f, err := os.OpenFile(filepath.Join(dir, "a.safetensors"), os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
			opened = 0
		} else {
			f.Close()
		}
		if r.Direct != opened {
			t.Errorf("%v: %d opens with O_DIRECT, want %d", sizes, r.Direct, opened)
		}
	}
	// What is read is what is compared, not what a mapping would show later.
	dir, want := model(t)
	r := newReader(Config{Dir: dir, Want: want, Direct: true})
	defer r.close()
	if n, err := r.weights(t.Context(), true); err != nil || n != weightBytes {
		t.Fatalf("%d, %v", n, err)
	}
	put(t, dir, "model-2-of-10.safetensors", []byte("another"))
	if _, sum, err := r.sum(t.Context(), "model-2-of-10.safetensors"); err != nil || sum != want["model-2-of-10.safetensors"] {
		t.Errorf("%v, %v", sum, err)
	}
	if _, err := r.weights(t.Context(), false); err == nil {
		t.Error("a shard that has become short is read")
	}
}

// TestDirectShort: a file that ends before its size is an error that names it.
func TestDirectShort(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.safetensors", make([]byte, piece))
	r := newReader(Config{Dir: dir, Direct: true})
	f, err := os.Open(filepath.Join(dir, "a.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = r.fill(t.Context(), f, "a.safetensors", make([]byte, 2*piece), 2*piece)
	if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "a.safetensors") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.fill(ctx, f, "a.safetensors", make([]byte, piece), piece); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestWithoutSumsNothingIsVerified(t *testing.T) {
	dir, _ := model(t)
	r, err := Run(t.Context(), Config{Dir: dir})
	if err != nil || r.Verified || len(r.Files) != 0 || len(r.Phases) != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestOrder: files in natural order, tensors in the order of their names, every byte once, in steps.
func TestOrder(t *testing.T) {
	dir, _ := model(t)
	r := newReader(Config{Dir: dir})
	defer r.close()
	type copied struct {
		path string
		off  int64
	}
	var got []copied
	r.copied = func(path string, off int64) { got = append(got, copied{path, off}) }
	if n, err := r.weights(t.Context(), true); err != nil || n != weightBytes {
		t.Fatalf("%d, %v", n, err)
	}
	begin := map[string]int64{}
	for _, path := range []string{"model-1-of-10.safetensors", "model-2-of-10.safetensors", "model-10-of-10.safetensors"} {
		h, err := r.header(path)
		if err != nil {
			t.Fatal(err)
		}
		begin[path] = h.Size
	}
	one, two, ten := "model-1-of-10.safetensors", "model-2-of-10.safetensors", "model-10-of-10.safetensors"
	want := []copied{
		{one, begin[one]}, {one, begin[one] + 1000},
		{two, begin[two] + 1000}, {two, begin[two]}, // c before z, against their offsets
		{ten, begin[ten]}, {ten, begin[ten] + step}, {ten, begin[ten] + step + 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("copied %v\nwant   %v", got, want)
	}
}

func TestShardsOutsideTheIndexAreNotRead(t *testing.T) {
	dir, _ := model(t)
	rng := rand.NewChaCha8([32]byte{})
	put(t, dir, "consolidated.safetensors", shard(rng, []string{"a"}, []int{9}))
	if r, err := Run(t.Context(), Config{Dir: dir}); err != nil || r.Weights != weightBytes {
		t.Errorf("%d bytes, %v", r.Weights, err)
	}
	if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	if r, err := Run(t.Context(), Config{Dir: dir}); err != nil || r.Weights != weightBytes+9 || r.Shards != 4 {
		t.Errorf("without an index: %d bytes in %d shards, %v", r.Weights, r.Shards, err)
	}
}

// TestHubCache reads a directory of links, as the Hub's client leaves one.
func TestHubCache(t *testing.T) {
	dir, want := model(t)
	links := t.TempDir()
	delete(want, "original/params.json")
	for path := range want {
		if err := os.Symlink(filepath.Join(dir, path), filepath.Join(links, path)); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := Run(t.Context(), Config{Dir: links, Want: want}); err != nil || !r.Verified {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestStall has a loader that delivers the first time only, on a clock of its own.
func TestStall(t *testing.T) {
	dir, want := model(t)
	synctest.Test(t, func(t *testing.T) {
		r := newReader(Config{Dir: dir, Want: want, HeadStart: 15 * time.Second})
		defer r.close()
		steps := 0
		r.copied = func(string, int64) {
			if steps++; steps <= 7 {
				time.Sleep(2 * time.Second)
			}
		}
		if err := r.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.result.Phase(Imports).Seconds(); got != 15 {
			t.Errorf("imports took %v s", got)
		}
		if r.result.Stall != 14 || r.result.First != 17 || r.result.Rate != math.Round(weightBytes/14.0) {
			t.Errorf("stall %v s, first weight after %v s, %v B/s", r.result.Stall, r.result.First, r.result.Rate)
		}
	})
}

func TestCancel(t *testing.T) {
	dir, _ := model(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := Run(ctx, Config{Dir: dir, HeadStart: time.Hour}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
	r := newReader(Config{Dir: dir})
	defer r.close()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	r.copied = func(string, int64) { n++; cancel() }
	if _, err := r.weights(ctx, true); !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("%v after %d steps", err, n)
	}
}

func TestWrongContent(t *testing.T) {
	flip := func(path string, off int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, path), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var b [1]byte
			if _, err := f.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(path, s string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { put(t, dir, path, []byte(s)) }
	}
	remove := func(path string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(path string, n int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, path), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	const ten = "model-10-of-10.safetensors"
	mismatch := func(err error) bool { return errors.As(err, new(*manifest.MismatchError)) }
	is := func(target error) func(error) bool {
		return func(err error) bool { return errors.Is(err, target) }
	}
	for name, c := range map[string]struct {
		damage func(*testing.T, string)
		class  func(error) bool
		names  string
	}{
		"a weight":                 {flip(ten, step), mismatch, ten},
		"the last byte":            {flip(ten, step+1+5+100), mismatch, ten},
		"a file that is not read":  {flip("README.md", 0), mismatch, "README.md"},
		"a file in a folder":       {flip("original/params.json", 1), mismatch, "original/params.json"},
		"the tokenizer":            {flip("tokenizer.json", step), mismatch, "tokenizer.json"},
		"a file that has grown":    {write("empty", "x"), mismatch, "empty"},
		"one file too many":        {write("evil.bin", "x"), is(manifest.ErrInvalid), "evil.bin"},
		"one too many in a folder": {write("original/evil", "x"), is(manifest.ErrInvalid), "original/evil"},
		"a file is missing":        {remove("README.md"), is(fs.ErrNotExist), "README.md"},
		"config.json is missing":   {remove("config.json"), is(fs.ErrNotExist), "config.json"},
		"a shard is missing":       {remove(ten), is(fs.ErrNotExist), ten},
		"a shard is cut off":       {cut(ten, step), is(manifest.ErrInvalid), ten},
		"a shard is empty":         {cut(ten, 0), is(manifest.ErrInvalid), ten},
		"an index that is no JSON": {write(indexName, "{"), is(manifest.ErrInvalid), indexName},
		"an index that escapes":    {write(indexName, `{"weight_map":{"a":"../x.safetensors"}}`), is(manifest.ErrInvalid), "../x"},
		"an index with a folder":   {write(indexName, `{"weight_map":{"a":"original/x.safetensors"}}`), is(manifest.ErrInvalid), "original/x"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, want := model(t)
			c.damage(t, dir)
			r, err := Run(t.Context(), Config{Dir: dir, Want: want})
			if err == nil || r.Verified || !c.class(err) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("verified %v, error %v (want one that names %s)", r.Verified, err, c.names)
			}
		})
	}
}

func TestNoDirectoryAndNoShards(t *testing.T) {
	if _, err := Run(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	put(t, dir, "config.json", []byte("{}"))
	if _, err := Run(t.Context(), Config{Dir: dir}); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("no shards: %v", err)
	}
}

// TestFault cuts a file under its mapping: the next page is a SIGBUS.
func TestFault(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.safetensors", make([]byte, 3*step))
	r := newReader(Config{Dir: dir})
	m, err := r.mapFile("a.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer m.unmap()
	if err := os.Truncate(filepath.Join(dir, "a.safetensors"), step+4096); err != nil {
		t.Fatal(err)
	}
	var seen []int64
	err = m.walk(t.Context(), r.buf, 0, 3*step, func(_ []byte, off int64) { seen = append(seen, off) })
	var fault *FaultError
	if !errors.As(err, &fault) || fault.Path != "a.safetensors" || fault.Offset < step+4096 || fault.Offset >= 2*step {
		t.Errorf("error %v (%+v)", err, fault)
	}
	if !slices.Equal(seen, []int64{0}) {
		t.Errorf("steps %v", seen)
	}
	defer func() {
		if recover() == nil {
			t.Error("a panic that is no fault was swallowed")
		}
	}()
	_ = m.walk(t.Context(), r.buf, 0, step, func([]byte, int64) { panic("another") })
}

// TestSteps: the edges of a step, at an odd offset.
func TestSteps(t *testing.T) {
	data := make([]byte, 2*step+100)
	rand.NewChaCha8([32]byte{2}).Read(data)
	dir := t.TempDir()
	put(t, dir, "f", data)
	r := newReader(Config{Dir: dir})
	m, err := r.mapFile("f")
	if err != nil {
		t.Fatal(err)
	}
	defer m.unmap()
	for _, n := range []int64{0, 1, step - 1, step, step + 1, 2 * step} {
		h, off, next := sha256.New(), int64(7), int64(7)
		err := m.walk(t.Context(), r.buf, off, n, func(b []byte, at int64) {
			if at != next || len(b) == 0 {
				t.Errorf("%d bytes: step of %d at %d, want %d", n, len(b), at, next)
			}
			next += int64(len(b))
			h.Write(b)
		})
		if err != nil || next != off+n || [32]byte(h.Sum(nil)) != sha256.Sum256(data[off:off+n]) {
			t.Errorf("%d bytes: %d read, %v", n, next-off, err)
		}
	}
	if err := m.walk(t.Context(), r.buf, 0, int64(len(data))+1, func([]byte, int64) {}); !errors.As(err, new(*FaultError)) {
		t.Errorf("past the mapping's end: %v", err)
	}
}

func TestSums(t *testing.T) {
	want := map[string]manifest.Digest{"a": {1}, "b/c d": {2}, " e": {3}}
	var b strings.Builder
	if err := WriteSums(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := ParseSums(strings.NewReader(b.String()))
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	line := strings.Repeat("0", 64)
	for _, bad := range []string{"x", line, line + "  ", line[1:] + "  a", line + "\ta", "\\" + line + "  a", line + "  a\n" + line + "  a", line + "  a\n\n", line + "  " + strings.Repeat("a", 1<<20)} {
		if _, err := ParseSums(strings.NewReader(bad)); err == nil {
			t.Errorf("%.80q is accepted", bad)
		}
	}
	if _, err := ParseSums(strings.NewReader(line + " *a")); err != nil {
		t.Errorf("binary mode: %v", err)
	}
}
