package stager_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// shard is a safetensors file with tensors of one byte each, and spaces behind its JSON up to a length.
func shard(length int, tensors ...string) []byte {
	var entries []string
	for i, name := range tensors {
		entries = append(entries, fmt.Sprintf(`%q:{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}`, name, i, i+1))
	}
	text := "{" + strings.Join(entries, ",") + "}"
	text += strings.Repeat(" ", max(0, length-len(text)))
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), make([]byte, len(tensors))...)
}

const indexPath = "model.safetensors.index.json"

// sharded is a repository of two shards and their index.
func sharded() *repo {
	return &repo{name: "google/gemma-test", large: 1000, files: map[string][]byte{
		"config.json":          []byte("{}"),
		"m-1-of-2.safetensors": shard(0, "a", "b"), "m-2-of-2.safetensors": shard(0, "c"),
		indexPath: []byte(`{"metadata":{"total_size":3},"weight_map":{"a":"m-1-of-2.safetensors","b":"m-1-of-2.safetensors","c":"m-2-of-2.safetensors"}}`),
	}}
}

// TestInspection spoils a model in every way that a server would meet later. Nothing is written then.
func TestInspection(t *testing.T) {
	index := func(text string) func(*repo) {
		return func(r *repo) { r.files[indexPath] = []byte(text) }
	}
	for name, test := range map[string]struct {
		spoil func(*repo)
		fail  string
		odd   string
	}{
		"as it should be":   {func(*repo) {}, "", ""},
		"a long header":     {func(r *repo) { r.files["m-2-of-2.safetensors"] = shard(200_000, "c") }, "", ""},
		"one byte too few":  {func(r *repo) { f := r.files["m-1-of-2.safetensors"]; r.files["m-1-of-2.safetensors"] = f[:len(f)-1] }, "m-1-of-2.safetensors: not a safetensors file: the tensors end at byte", ""},
		"one byte too many": {func(r *repo) { r.files["m-1-of-2.safetensors"] = append(r.files["m-1-of-2.safetensors"], 0) }, "m-1-of-2.safetensors: not a safetensors file: the tensors end at byte", ""},
		"empty":             {func(r *repo) { r.files["m-1-of-2.safetensors"] = nil }, "m-1-of-2.safetensors: 0 bytes are too few", ""},
		"seven bytes":       {func(r *repo) { r.files["m-1-of-2.safetensors"] = make([]byte, 7) }, "m-1-of-2.safetensors: 7 bytes are too few", ""},
		"a pickle in it":    {func(r *repo) { r.files["m-1-of-2.safetensors"] = []byte("PK\x03\x04 and so on, a zip") }, "m-1-of-2.safetensors: not a safetensors file: header of", ""},
		"an LFS pointer": {func(r *repo) {
			r.files["m-1-of-2.safetensors"] = []byte("version https://git-lfs.github.com/spec/v1\n")
		}, "m-1-of-2.safetensors: not a safetensors file", ""},
		"a shard is missing": {func(r *repo) { delete(r.files, "m-2-of-2.safetensors") }, indexPath + `: it names m-2-of-2.safetensors (tensor "c"), which the model does not have`, ""},
		"a tensor elsewhere": {index(`{"weight_map":{"a":"m-1-of-2.safetensors","b":"m-2-of-2.safetensors","c":"m-2-of-2.safetensors"}}`), indexPath + `: tensor "b" should be in m-2-of-2.safetensors, which does not have it`, ""},
		"no shard":           {index(`{"weight_map":{"a":"config.json"}}`), `config.json (tensor "a"), which is no *.safetensors file`, ""},
		"not JSON":           {index(`<html>`), indexPath + ": not a safetensors file: the index: ", ""},
		"an empty index":     {index(``), indexPath + ": ", ""},
		"out of the folder":  {index(`{"weight_map":{"a":"../x"}}`), `"../x"`, ""},
		"in a left-out file": {func(r *repo) {
			r.files["original/x.safetensors"] = shard(0, "z")
			index(`{"weight_map":{"a":"original/x.safetensors"}}`)(r)
		}, `names original/x.safetensors (tensor "a"), which is left out (the same weights in another layout)`, ""},
		"a folder's own index": {func(r *repo) {
			r.files["sub/model.safetensors"] = shard(0, "z")
			r.files["sub/"+indexPath] = []byte(`{"weight_map":{"z":"model.safetensors"}}`)
		}, "", ""},
		"a tensor besides": {func(r *repo) { r.files["m-2-of-2.safetensors"] = shard(0, "c", "extra", "more") }, "", `m-2-of-2.safetensors has 2 tensors that ` + indexPath + ` does not name, the first of them "extra"`},
		"another total":    {index(`{"metadata":{"total_size":4},"weight_map":{"a":"m-1-of-2.safetensors","b":"m-1-of-2.safetensors","c":"m-2-of-2.safetensors"}}`), "", "total_size 4, and its tensors have 3 bytes"},
		"a shard besides":  {func(r *repo) { r.files["m-3.safetensors"] = shard(0, "z") }, "", "m-3.safetensors is in no index"},
	} {
		t.Run(name, func(t *testing.T) {
			r, bucket := sharded(), stagertest.NewBucket(t)
			test.spoil(r)
			store := bucket.Store(nil)
			plan, err := newStager(&memory{repo: r}, store).Plan(t.Context(), manifest.Reference{Repo: r.name})
			_, staged := stage(t, &memory{repo: r}, store)
			if test.fail == "" {
				if err != nil || staged != nil || (len(plan.Odd) > 0) != (test.odd != "") || !strings.Contains(strings.Join(plan.Odd, "\n"), test.odd) {
					t.Errorf("%v, %v; odd: %q", err, staged, plan.Odd)
				}
				return
			}
			for _, err := range []error{err, staged} {
				if err == nil || !strings.Contains(err.Error(), test.fail) || strings.Contains(err.Error(), "\n") || !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, stager.ErrSelection) {
					t.Errorf("%v, want %q", err, test.fail)
				}
			}
			if w := store.Writes(); len(w) > 0 {
				t.Errorf("written: %q", w)
			}
		})
	}
}

// ranged counts the ranges that are read of a source.
type ranged struct {
	*memory
	asked []string
}

func (r *ranged) Open(_ context.Context, _ manifest.Model, f stager.RemoteFile, off, n int64) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, fmt.Sprintf("%s %d+%d", f.Path, off, n))
	return io.NopCloser(bytes.NewReader(r.files[f.Path][off : off+n])), nil
}

// TestInspectionReads asks for no byte twice, and for a header in two reads at most.
func TestInspectionReads(t *testing.T) {
	const first = 64 << 10
	for length, want := range map[int]string{100: "0+109", first - 8: fmt.Sprintf("0+%d", first), first - 7: fmt.Sprintf("0+%d %d+1", first, first), 3 * first: fmt.Sprintf("0+%d %d+%d", first, first, 2*first+8)} {
		r := &repo{name: "google/gemma-test", files: map[string][]byte{"model.safetensors": shard(length, "a"), "config.json": []byte("{}")}}
		source := &ranged{memory: &memory{repo: r}}
		if _, err := newStager(source, stagertest.NewBucket(t).Store(nil)).Plan(t.Context(), manifest.Reference{Repo: r.name}); err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(strings.Join(source.asked, " "), "model.safetensors ", ""); got != want {
			t.Errorf("a header of %d bytes: %s, want %s", length, got, want)
		}
	}
}

// TestInspectionOnce does not look again at a staged model that lacks an object.
func TestInspectionOnce(t *testing.T) {
	r, bucket := sharded(), stagertest.NewBucket(t)
	result, err := stage(t, &memory{repo: r}, bucket.Store(nil))
	if err != nil {
		t.Fatal(err)
	}
	bucket.Remove(result.Manifest.Model.Object("config.json"))
	source := &ranged{memory: &memory{repo: r}}
	if _, err := stage(t, source, bucket.Store(nil)); err != nil || fmt.Sprint(source.asked) != "[config.json 0+2]" {
		t.Errorf("%v; read %q", err, source.asked)
	}
}

// TestInspectionBudget counts the requests of a plan: a range a shard and one the index, and none where the
// model is staged.
func TestInspectionBudget(t *testing.T) {
	r := sharded()
	h, source := serveHub(t, hub.Config{}, r)
	b, open := serveBuckets(t)
	store := open("models", nil)
	ref := manifest.Reference{Repo: r.name}
	if _, err := newStager(source, store).Plan(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	want := "map[auth-check:1 bytes:3 resolve:3 revision:1 tree:1]"
	if got := fmt.Sprint(hubRequests(h)); got != want {
		t.Errorf("the Hub is asked %s, want %s", got, want)
	}
	if got := fmt.Sprint(bucketRequests(b)); got != "map[get:1 list:2]" {
		t.Errorf("the bucket is asked %s", got)
	}
	if _, err := stage(t, source, store); err != nil {
		t.Fatal(err)
	}
	h.ResetRequests()
	if _, err := stage(t, source, store); err != nil || len(h.Requests()) != 1 {
		t.Errorf("%v, and %d requests", err, len(h.Requests()))
	}
}
