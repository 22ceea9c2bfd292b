package inventory_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/file"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/inventory"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

var (
	one = strings.Repeat("1", 40)
	two = strings.Repeat("2", 64)
)

func put(t *testing.T, s stager.Store, key, data string) {
	t.Helper()
	if err := s.Put(context.Background(), key, 0, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func stage(t *testing.T, s stager.Store, m manifest.Model, path string) {
	t.Helper()
	sum := crc32.Checksum([]byte(path), manifest.Castagnoli)
	raw, err := manifest.Marshal(&manifest.Manifest{Model: m, ChunkSize: 64 << 10,
		Files: []manifest.File{{Path: path, Size: int64(len(path)), SHA256: sha256.Sum256([]byte(path)), CRC32C: sum, Chunks: []uint32{sum}}}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, m.Object(path), path)
	put(t, s, m.Key(), string(raw))
}

// fill makes two staged commits, a damaged one, one of another's, two unfinished ones, refs, and what is foreign.
func fill(t *testing.T, s stager.Store) {
	a, b := manifest.Model{Repo: "org/name", Commit: one}, manifest.Model{Repo: "gpt2", Commit: two}
	stage(t, s, a, "config.json")
	stage(t, s, b, "w.safetensors")
	put(t, s, manifest.RefKey("org/name", "main"), one)
	put(t, s, manifest.RefKey("org/name", "refs/pr/1"), one)
	put(t, s, manifest.RefKey("org/name", "gone"), two)
	put(t, s, manifest.RefKey("gpt2", "v1"), two)
	put(t, s, manifest.RefKey("gpt2", "bad"), "no commit")
	put(t, s, manifest.Private+"gpt2/"+one+".json", "{}")
	put(t, s, inventory.PartsOf(manifest.Model{Repo: "org/half", Commit: one})+"00112233445566778899aabbccddeeff/part", "12345")
	put(t, s, "org/half/"+one+"/config.json", "123")
	put(t, s, inventory.PartsOf(manifest.Model{Repo: "gpt2", Commit: strings.Repeat("3", 40)})+"00112233445566778899aabbccddeeff/part", "12345")
	for _, key := range []string{"x", "org/name/x.json", "refs/x", "org/name/refs/a%2fb", "org/name/refs/a~b", "org/na--me/" + one + ".json", "parts/x", "parts/org/name/x", "parts/a/b/c/d"} {
		put(t, s, manifest.Private+key, "foreign")
	}
}

func text(inv *inventory.Inventory) string {
	var b strings.Builder
	for _, c := range inv.Commits {
		var refs []string
		for _, r := range c.Refs {
			refs = append(refs, r.Name)
		}
		state := "staged"
		switch {
		case c.Err != nil:
			state = "damaged"
		case !c.Staged():
			state = fmt.Sprintf("unfinished %d", c.Held())
		}
		fmt.Fprintf(&b, "%s@%.4s %s %q\n", c.Model.Repo, c.Model.Commit, state, refs)
	}
	return b.String()
}

func TestRead(t *testing.T) {
	memory, dir := stagertest.NewBucket(t).Store(nil), t.TempDir()
	disk, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	_, cloud := serve(t)
	for name, s := range map[string]stager.Store{"memory": memory, "file": disk, "gcs": cloud} {
		before := time.Now().Add(-time.Minute)
		fill(t, s)
		for repo, want := range map[string]string{
			"": `gpt2@1111 damaged []
gpt2@2222 staged ["v1"]
gpt2@3333 unfinished 5 []
org/half@1111 unfinished 8 []
org/name@1111 staged ["main" "refs/pr/1"]
`,
			"org/name": `org/name@1111 staged ["main" "refs/pr/1"]
`, "org/half": `org/half@1111 unfinished 8 []
`, "gpt2": `gpt2@1111 damaged []
gpt2@2222 staged ["v1"]
gpt2@3333 unfinished 5 []
`, "org/none": "", "org": "",
		} {
			inv, err := inventory.Read(t.Context(), s, repo)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(inv); got != want {
				t.Errorf("%s: of %q:\n%swant\n%s", name, repo, got, want)
			}
			for _, c := range inv.Commits {
				if at := c.Changed(); at.Before(before) || at.After(time.Now().Add(time.Minute)) {
					t.Errorf("%s: %s is from %s", name, c.Model, at)
				}
			}
		}
	}
}

func serve(t *testing.T) (*bucket.Server, *gcs.Store) {
	t.Helper()
	b, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.CreateBucket("models"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Prefix: "a/prefix/", Emulator: server.URL, Wait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return b, s
}

// TestBudget counts the requests: a listing for the bucket, one for each commit that is not staged, and a
// read for each manifest and each ref. How many objects the models have does not matter.
func TestBudget(t *testing.T) {
	b, s := serve(t)
	fill(t, s)
	for repo, want := range map[string]map[string]int{
		"":         {"list": 1 + 2, "get": 3 + 5},
		"org/name": {"list": 2, "get": 1 + 3},
		"gpt2":     {"list": 2 + 1, "get": 2 + 2},
		"org/none": {"list": 2},
	} {
		b.ResetRequests()
		if _, err := inventory.Read(t.Context(), s, repo); err != nil {
			t.Fatal(err)
		}
		got := make(map[string]int)
		for _, r := range b.Requests() {
			got[strings.TrimPrefix(r.Op, "storage.objects.")]++
		}
		if !maps.Equal(got, want) {
			t.Errorf("of %q: %v, want %v", repo, got, want)
		}
	}
}
