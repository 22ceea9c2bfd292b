package stager_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// TestForeignObjects stages into a prefix that others use: what is theirs stays, byte for byte.
func TestForeignObjects(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	theirs := map[string]string{
		"google/README": "of a company", r.name + "/notes.txt": "notes", r.name + "/main": "not a folder",
		model.Object("unlisted.safetensors"): "below our commit", model.Object("config.json") + ".bak": "a name that begins as ours does",
		manifest.Private + "google/gemma-test/" + strings.Repeat("f", 40) + ".json": "a manifest of another commit, and a damaged one",
		manifest.Private + "parts/google/gemma-test-2/x":                            "of another model", manifest.Private + "notes": "notes",
	}
	for name, open := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			for key, data := range theirs {
				if err := store.Put(t.Context(), key, 0, []byte(data)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if _, err := stage(t, &memory{repo: r}, store); err != nil {
					t.Fatal(err)
				}
			}
			all := contents(t, store)
			for key, data := range theirs {
				if all[key] != data {
					t.Errorf("%s is %q", key, all[key])
				}
				delete(all, key)
			}
			if len(all) != len(r.files)+2 {
				t.Errorf("%q", keys(all))
			}
		})
	}
}

// TestForeignManifest finds something else where the manifest belongs. It is named, and stays.
func TestForeignManifest(t *testing.T) {
	r := smallRepo()
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	another, err := manifest.Marshal(&manifest.Manifest{Model: manifest.Model{Repo: "google/other", Commit: r.Commit()}, ChunkSize: chunkSize, Files: []manifest.File{{Path: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no JSON": "#!/bin/sh", "empty": "", "of another tool": `{"schemaVersion":2,"layers":[]}`, "of a later version": `{"version":99,"model":"google/gemma-test"}`,
		"of another model": string(another), "too large": strings.Repeat(" ", manifest.MaxSize+1), "not canonical": strings.Replace(string(another), ":", ": ", 1),
	} {
		for _, kind := range []string{"file", "gcs"} {
			t.Run(kind+" "+name, func(t *testing.T) {
				store, source := buckets(t)[kind](t), &memory{repo: r}
				if err := store.Put(t.Context(), model.Key(), 0, []byte(text)); err != nil {
					t.Fatal(err)
				}
				_, err := stage(t, source, store)
				var version *manifest.VersionError
				if !errors.Is(err, manifest.ErrInvalid) && !errors.As(err, &version) || !strings.Contains(err.Error(), model.Key()) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 700 {
					t.Errorf("%v", err)
				}
				if got := contents(t, store); !maps.Equal(got, map[string]string{model.Key(): text}) {
					t.Errorf("%q", keys(got))
				}
				if len(source.fetched) != 0 {
					t.Errorf("fetched %v", source.fetched)
				}
			})
		}
	}
}

// TestLyingParts finds parts whose bytes are the service's word and whose notes are anybody's: of another
// version, damaged, or made to deceive. A run may fail and say so; what is committed is right.
func TestLyingParts(t *testing.T) {
	r := smallRepo()
	const path = "model-0327697.safetensors"
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	data := r.files[path][:2*chunkSize]
	sums := ""
	for _, c := range [][]byte{data[:chunkSize], data[chunkSize:]} {
		sums += hexOf(crc32.Checksum(c, manifest.Castagnoli))
	}
	// The notes that a run leaves, to be spoilt.
	honest := honestNotes(t, r, path)
	spoil := func(change func(map[string]any)) string {
		var n map[string]any
		if err := json.Unmarshal(honest, &n); err != nil {
			t.Fatal(err)
		}
		change(n)
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, note := range map[string]string{
		"none": "", "no JSON": "part 1 of 3", "null": "null", "of another version": `{"v":2,"sums":["` + sums + `"]}`,
		"no states":       spoil(func(n map[string]any) { delete(n, "before"); delete(n, "after") }),
		"states cut":      spoil(func(n map[string]any) { n["after"] = n["after"].(string)[:20] }),
		"after is empty":  spoil(func(n map[string]any) { n["after"] = "" }),
		"after is before": spoil(func(n map[string]any) { n["after"] = n["before"] }),
		"before is after": spoil(func(n map[string]any) { n["before"] = n["after"] }),
		"other sums":      spoil(func(n map[string]any) { n["chunks"] = sums[8:] + sums[:8] }),
		"too many sums":   spoil(func(n map[string]any) { n["chunks"] = sums + "00000000" }),
		"no sums":         spoil(func(n map[string]any) { n["chunks"] = "" }),
		"sums of text":    spoil(func(n map[string]any) { n["chunks"] = "zz" + sums[2:] }),
	} {
		for _, kind := range []string{"file", "gcs"} {
			t.Run(kind+" "+name, func(t *testing.T) {
				open := buckets(t)[kind]
				store := open(t)
				u, err := store.Upload(t.Context(), model.Object(path), stager.DirOf(model, path), int64(len(r.files[path])))
				if err != nil {
					t.Fatal(err)
				}
				p := stager.Part{Size: int64(len(data)), CRC32C: crc32.Checksum(data, manifest.Castagnoli), Note: []byte(note)}
				if err := u.Write(t.Context(), p, [][]byte{data}); err != nil {
					t.Fatal(err)
				}
				if err := u.Close(); err != nil {
					t.Fatal(err)
				}
				if _, err := stage(t, &memory{repo: r}, store); err != nil {
					var mismatch *manifest.MismatchError
					if !errors.As(err, &mismatch) || mismatch.Path != path {
						t.Errorf("%v", err)
					}
					if _, err := stage(t, &memory{repo: r}, store); err != nil {
						t.Errorf("again: %v", err)
					}
				}
				checkStaged(t, store, r)
			})
		}
	}
}

func hexOf(sum uint32) string { return fmt.Sprintf("%08x", sum) }

// honestNotes returns the note of the first part that a run leaves.
func honestNotes(t *testing.T, r *repo, path string) []byte {
	t.Helper()
	bucket := stagertest.NewBucket(t)
	model := manifest.Model{Repo: r.name, Commit: r.Commit()}
	_, err := stage(t, &memory{repo: r}, bucket.Store(func(_ int, write string) stagertest.Fault {
		if write == "commit "+model.Object(path) {
			return stagertest.DeadBefore
		}
		return stagertest.None
	}))
	if !errors.Is(err, stagertest.ErrFault) {
		t.Fatal(err)
	}
	u, err := bucket.Store(nil).Upload(t.Context(), model.Object(path), stager.DirOf(model, path), int64(len(r.files[path])))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	return u.Parts()[0].Note
}
