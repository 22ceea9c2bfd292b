package stager_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

// hubRequests counts by what is asked for.
func hubRequests(h *hub.Server) map[string]int {
	count := make(map[string]int)
	for _, r := range h.Requests() {
		kind := "bytes"
		for _, k := range []string{"revision", "auth-check", "tree", "resolve"} {
			if strings.Contains(r.Path+"/", "/"+k+"/") {
				kind = k
			}
		}
		count[kind]++
	}
	return count
}

func bucketRequests(b *bucket.Server) map[string]int {
	count := make(map[string]int)
	for _, r := range b.Requests() {
		count[strings.TrimPrefix(r.Op, "storage.objects.")]++
	}
	return count
}

// TestRequestBudget counts every request of a run, and of the one after it.
func TestRequestBudget(t *testing.T) {
	r := exampleRepo()
	h, source := serveHub(t, hub.Config{}, r)
	b, open := serveBuckets(t)
	store := open("models", nil)
	if _, err := stage(t, source, store); err != nil {
		t.Fatal(err)
	}
	const partSize = 2 * chunkSize
	files, full, shards, chunks, uploads, parts, joins, composes := 0, 0, 0, 0, 0, 0, 0, 0
	for path, data := range r.chosen() {
		files++
		if strings.HasSuffix(path, ".safetensors") {
			shards++ // its header, looked at before
		}
		if len(data) > 0 {
			full++
		}
		chunks += int(manifest.NumChunks(int64(len(data)), chunkSize))
		if n := int(manifest.NumChunks(int64(len(data)), partSize)); n > 1 {
			uploads++
			parts += n
			composes++
			if n > 32 {
				joins += 2 // 34 parts: 32 and 2
			}
		}
	}
	want := map[string]int{"revision": 1, "auth-check": 1, "tree": 1, "resolve": full, "bytes": chunks + shards}
	if got := hubRequests(h); !maps.Equal(got, want) {
		t.Errorf("the Hub is asked %v, want %v", got, want)
	}
	want = map[string]int{
		"list":    4 + uploads,                                   // parts at the beginning and the end, objects, other commits; parts of each upload
		"get":     2,                                             // manifest, ref
		"insert":  files - uploads + parts + uploads + 1 + 1 + 1, // small files, parts, records, the trial, manifest, ref
		"compose": composes + joins,
		"delete":  parts + joins + uploads + 1, // the last are the records and the trial
	}
	if got := bucketRequests(b); !maps.Equal(got, want) {
		t.Errorf("the bucket is asked %v, want %v", got, want)
	}

	h.ResetRequests()
	b.ResetRequests()
	if result, err := stage(t, source, store); err != nil || !result.Already {
		t.Fatalf("%+v, %v", result, err)
	}
	if got, want := hubRequests(h), map[string]int{"revision": 1}; !maps.Equal(got, want) {
		t.Errorf("the second time the Hub is asked %v, want %v", got, want)
	}
	if got, want := bucketRequests(b), map[string]int{"list": 2, "get": 2}; !maps.Equal(got, want) {
		t.Errorf("the second time the bucket is asked %v, want %v", got, want)
	}
}

// TestBudgetOfAGibibyte counts what 1 GiB costs with the default sizes: 64 chunks of 16 MiB, which are here
// 64 chunks of 64 KiB. Three requests of the Hub's API and one a chunk of its CDN; of the bucket 40 of
// Class A (inserts, composition, lists), 2 that read, and deletes, which are free.
func TestBudgetOfAGibibyte(t *testing.T) {
	r := shards(64)
	h, source := serveHub(t, hub.Config{}, r)
	b, open := serveBuckets(t)
	if _, err := stage(t, source, open("models", nil)); err != nil {
		t.Fatal(err)
	}
	if got, want := hubRequests(h), map[string]int{"auth-check": 1, "revision": 1, "tree": 1, "resolve": 1, "bytes": 64 + 1}; !maps.Equal(got, want) {
		t.Errorf("the Hub is asked %v, want %v", got, want)
	}
	// 32 parts; the record, the trial, the manifest, the ref
	if got, want := bucketRequests(b), map[string]int{"list": 5, "get": 2, "insert": 32 + 4, "compose": 1, "delete": 32 + 2}; !maps.Equal(got, want) {
		t.Errorf("the bucket is asked %v, want %v", got, want)
	}
}
