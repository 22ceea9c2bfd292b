package stager_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// heard stages and returns what was said aloud.
func heard(t *testing.T, source stager.Source, store stager.Store) (stager.Result, []string, error) {
	t.Helper()
	var text bytes.Buffer
	s := stager.New(stager.Config{Source: source, Store: store, ChunkSize: chunkSize, Memory: 8 * chunkSize,
		Log: slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	r, err := s.Stage(t.Context(), manifest.Reference{Repo: "google/gemma-test"})
	return r, strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"), err
}

// split tells what readers of a bucket see from what is kept below .headstart/parts/.
func split(all map[string]string) (seen map[string]string, parts, bytes int) {
	seen = make(map[string]string)
	for key, data := range all {
		if strings.HasPrefix(key, manifest.Private+"parts/") {
			parts++
			bytes += len(data)
		} else {
			seen[key] = data
		}
	}
	return seen, parts, bytes
}

// TestUndeletable stages to buckets that do not let go of parts. The model is staged all the same, what stays
// is said once, again does nothing, and the first run after the reason has gone removes it.
func TestUndeletable(t *testing.T) {
	r := smallRepo()
	_, plain := serveBuckets(t)
	if _, err := stage(t, &memory{repo: r}, plain("plain", nil)); err != nil {
		t.Fatal(err)
	}
	want := contents(t, plain("plain", nil))
	for name, test := range map[string]struct {
		set, unset func(*bucket.Server) error
		why        string
	}{
		"retention policy": {
			func(b *bucket.Server) error { return b.SetPolicy("models", bucket.Policy{Retention: time.Hour}) },
			func(b *bucket.Server) error { return b.SetPolicy("models", bucket.Policy{}) }, "is held by a retention policy",
		},
		"no permission to delete": {
			func(b *bucket.Server) error { b.Deny("storage.objects.delete"); return nil },
			func(b *bucket.Server) error { b.Deny(); return nil }, "storage.objects.delete",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, open := serveBuckets(t)
			store := open("models", nil)
			if err := test.set(b); err != nil {
				t.Fatal(err)
			}
			first, said, err := heard(t, &memory{repo: r}, store)
			if err != nil {
				t.Fatal(err)
			}
			seen, parts, size := split(contents(t, store))
			if d := differs(seen, want); d != "" {
				t.Error(d)
			}
			if parts != 5 || first.Kept != (stager.Kept{Objects: parts, Bytes: int64(size)}) { // three parts, a record, the trial
				t.Errorf("%d objects of %d bytes stay, and it says %+v", parts, size, first.Kept)
			}
			if len(said) != 1 || !strings.Contains(said[0], test.why) || !strings.Contains(said[0], "lifecycle rule") || !strings.Contains(said[0], "gs://models/some/prefix/.headstart/parts/") {
				t.Errorf("%q", said)
			}
			b.ResetRequests()
			second, said, err := heard(t, &memory{repo: r}, store)
			if err != nil || !second.Already || second.Kept != first.Kept || len(said) != 1 {
				t.Errorf("%+v, %q, %v", second, said, err)
			}
			if n := bucketRequests(b)["delete"]; n != 1 || bucketRequests(b)["insert"] != 0 {
				t.Errorf("the second time: %v", bucketRequests(b))
			}
			if err := test.unset(b); err != nil {
				t.Fatal(err)
			}
			third, said, err := heard(t, &memory{repo: r}, store)
			if err != nil || third.Kept != (stager.Kept{}) || said[0] != "" {
				t.Errorf("%+v, %q, %v", third, said, err)
			}
			if d := differs(contents(t, store), want); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestUndeletableCrashes crashes at each request where nothing can be deleted.
func TestUndeletableCrashes(t *testing.T) {
	r := smallRepo()
	b, open := serveBuckets(t)
	first := &wire{at: -1}
	store := open("whole", first)
	if _, err := stage(t, &memory{repo: r}, store); err != nil {
		t.Fatal(err)
	}
	want := contents(t, store)
	crashes := 0
	for n := range first.requests {
		for _, fault := range []stagertest.Fault{stagertest.DeadBefore, stagertest.DeadAfter} {
			ctx, kill := context.WithCancel(t.Context())
			name := "models-" + string(rune('a'+n/26)) + string(rune('a'+n%26)) + strings.ReplaceAll(fault.String(), " ", "-")
			store := open(name, &wire{at: n, fault: fault, kill: kill})
			if err := b.SetPolicy(name, bucket.Policy{Retention: time.Hour}); err != nil {
				t.Fatal(err)
			}
			source := &memory{repo: r}
			_, err := newStager(source, store).Stage(ctx, manifest.Reference{Repo: r.name})
			kill()
			if err != nil {
				crashes++
				if _, err := stage(t, source, open(name, nil)); err != nil {
					t.Errorf("%s %s, then again: %v", first.requests[n], fault, err)
				}
			}
			if seen, _, _ := split(contents(t, open(name, nil))); differs(seen, want) != "" {
				t.Errorf("%s %s: %s", first.requests[n], fault, differs(seen, want))
			}
			for piece, times := range source.fetched {
				if times > 2 {
					t.Errorf("%s %s: %s was fetched %d times", first.requests[n], fault, piece, times)
				}
			}
		}
	}
	t.Logf("%d crashes", crashes)
}

// TestUndeletableWrongBytes receives wrong bytes into parts that stay: the next run must not take them over.
func TestUndeletableWrongBytes(t *testing.T) {
	r := smallRepo()
	b, open := serveBuckets(t)
	store := open("models", nil)
	if err := b.SetPolicy("models", bucket.Policy{Retention: time.Hour}); err != nil {
		t.Fatal(err)
	}
	liar := &memory{repo: r, bytes: func(_ context.Context, path string, off int64, data []byte) (io.Reader, error) {
		if path == "model-0327697.safetensors" && off == 2*chunkSize {
			data = slices.Clone(data)
			data[7] ^= 1
		}
		return bytes.NewReader(data), nil
	}}
	for range 3 {
		var mismatch *manifest.MismatchError
		if _, err := stage(t, liar, store); !errors.As(err, &mismatch) {
			t.Fatalf("%v", err)
		}
	}
	source := &memory{repo: r}
	result, err := stage(t, source, store)
	if err != nil {
		t.Fatal(err)
	}
	if result.Kept.Objects < 13 {
		t.Errorf("%+v", result.Kept)
	}
	if err := b.SetPolicy("models", bucket.Policy{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stage(t, source, store); err != nil {
		t.Fatal(err)
	}
	checkStaged(t, store, r)
}

// TestRetainedRef stages another commit where the branch's object may not be replaced: the model is there,
// and whoever asks for the branch is told why it names the old one.
func TestRetainedRef(t *testing.T) {
	r := smallRepo()
	b, open := serveBuckets(t)
	store := open("models", nil)
	if err := store.Put(t.Context(), manifest.RefKey(r.name, "main"), 0, []byte(strings.Repeat("f", 40))); err != nil {
		t.Fatal(err)
	}
	if err := b.SetPolicy("models", bucket.Policy{Retention: time.Hour}); err != nil {
		t.Fatal(err)
	}
	_, _, err := heard(t, &memory{repo: r}, store)
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), `is staged, but not its ref "main"`) || !strings.Contains(err.Error(), "retention policy") {
		t.Errorf("%v", err)
	}
	if _, ok := contents(t, store)[manifest.Model{Repo: r.name, Commit: r.Commit()}.Key()]; !ok {
		t.Error("the manifest is not there")
	}
}

// TestKeptVersions counts what versioning and soft delete keep: each part once, and nothing of the model.
func TestKeptVersions(t *testing.T) {
	r := smallRepo()
	for name, policy := range map[string]bucket.Policy{"versioning": {Versioning: true}, "soft delete": {SoftDelete: 7 * 24 * time.Hour}, "both": {Versioning: true, SoftDelete: 7 * 24 * time.Hour}} {
		t.Run(name, func(t *testing.T) {
			b, open := serveBuckets(t)
			store := open("models", nil)
			if err := b.SetPolicy("models", policy); err != nil {
				t.Fatal(err)
			}
			result, said, err := heard(t, &memory{repo: r}, store)
			if err != nil || result.Kept != (stager.Kept{}) || said[0] != "" {
				t.Fatalf("%+v, %q, %v", result, said, err)
			}
			checkStaged(t, store, r)
		})
	}
}

// TestDenied lacks a permission: that is an error before the first byte of a file comes.
func TestDenied(t *testing.T) {
	r := smallRepo()
	for _, permission := range []string{"storage.objects.list", "storage.objects.get", "storage.objects.create"} {
		t.Run(permission, func(t *testing.T) {
			h, source := serveHub(t, hub.Config{}, r)
			b, open := serveBuckets(t)
			store := open("models", nil)
			b.Deny(permission)
			_, err := stage(t, source, store)
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), permission) || !strings.Contains(err.Error(), "grant this account roles/storage.objectUser") {
				t.Errorf("%v", err)
			}
			headers := 0
			for path := range r.files {
				if strings.HasSuffix(path, ".safetensors") {
					headers++
				}
			}
			if n := hubRequests(h)["bytes"]; n > headers {
				t.Errorf("%d ranges were asked for, and there are %d headers", n, headers)
			}
			b.Deny()
			if got := contents(t, store); len(got) != 0 {
				t.Errorf("%q", keys(got))
			}
		})
	}
}
