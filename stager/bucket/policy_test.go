package bucket_test

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"

	"github.com/headstart-serving/headstart/stager/bucket"
)

// refusedFor checks that the service says no for the given reason.
func refusedFor(t *testing.T, what string, err error, code int, reason string) {
	t.Helper()
	var api *googleapi.Error
	if !errors.As(err, &api) || api.Code != code || len(api.Errors) == 0 || api.Errors[0].Reason != reason {
		t.Errorf("%s: %v, want %d %s", what, err, code, reason)
	}
}

// query lists "name generation" in the order of the list, in pages of two.
func query(t *testing.T, b *storage.BucketHandle, q storage.Query) []storage.ObjectAttrs {
	t.Helper()
	it := b.Objects(t.Context(), &q)
	it.PageInfo().MaxSize = 2
	var all []storage.ObjectAttrs
	for {
		a, err := it.Next()
		if errors.Is(err, iterator.Done) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, *a)
	}
}

func generations(all []storage.ObjectAttrs) (gs []int64) {
	for _, a := range all {
		gs = append(gs, a.Generation)
	}
	return gs
}

func TestRetention(t *testing.T) {
	h := start(t, t.TempDir())
	b, ctx := h.client.Bucket(name), t.Context()
	old := put(t, h.object("old"), []byte("before the policy"))
	attrs, err := b.Update(ctx, storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{RetentionPeriod: time.Hour}})
	if err != nil || attrs.RetentionPolicy == nil || attrs.RetentionPolicy.RetentionPeriod != time.Hour || attrs.RetentionPolicy.EffectiveTime.IsZero() || attrs.RetentionPolicy.IsLocked {
		t.Fatalf("%+v, %v", attrs, err)
	}
	part := put(t, h.object("part"), []byte("part"))
	refusedFor(t, "delete", h.object("part").Delete(ctx), 403, "retentionPolicyNotMet")
	refusedFor(t, "delete of what was there before", h.object("old").If(storage.Conditions{GenerationMatch: old.Generation}).Delete(ctx), 403, "retentionPolicyNotMet")
	w := h.object("part").NewWriter(ctx)
	w.Write([]byte("other"))
	refusedFor(t, "overwrite", w.Close(), 403, "retentionPolicyNotMet")
	_, err = h.object("part").ComposerFrom(h.object("old"), h.object("part")).Run(ctx)
	refusedFor(t, "compose over it", err, 403, "retentionPolicyNotMet")
	if _, err := h.object("whole").ComposerFrom(h.object("old"), h.object("part")).Run(ctx); err != nil {
		t.Errorf("compose into another: %v", err)
	}
	if _, err := h.object("part").Update(ctx, storage.ObjectAttrsToUpdate{ContentType: "text/plain"}); err != nil {
		t.Errorf("its metadata is not retained: %v", err)
	}
	if got := get(t, h.object("part"), 0, -1); string(got) != "part" {
		t.Errorf("%q", got)
	}
	// A second later it is old enough for a policy of a second.
	if _, err := b.Update(ctx, storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{RetentionPeriod: time.Second}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(part.Created.Add(time.Second + 50*time.Millisecond)))
	if err := h.object("part").Delete(ctx); err != nil {
		t.Errorf("after its time: %v", err)
	}
	meta, err := b.Attrs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.If(storage.BucketConditions{MetagenerationMatch: meta.MetaGeneration}).LockRetentionPolicy(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = b.Update(ctx, storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{}})
	refusedFor(t, "removing a locked policy", err, 403, "forbidden")
	if meta, err := b.Attrs(ctx); err != nil || !meta.RetentionPolicy.IsLocked {
		t.Errorf("%+v, %v", meta.RetentionPolicy, err)
	}
}

func TestDefaultHold(t *testing.T) {
	h := start(t, t.TempDir())
	ctx := t.Context()
	if err := h.SetPolicy(name, bucket.Policy{DefaultHold: true}); err != nil {
		t.Fatal(err)
	}
	if a := put(t, h.object("a"), []byte("a")); !a.EventBasedHold {
		t.Error("no hold")
	}
	refusedFor(t, "held", h.object("a").Delete(ctx), 403, "forbidden")
	if _, err := h.object("a").Update(ctx, storage.ObjectAttrsToUpdate{EventBasedHold: false}); err != nil {
		t.Fatal(err)
	}
	if err := h.object("a").Delete(ctx); err != nil {
		t.Error(err)
	}
}

func TestVersioning(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	b, ctx := h.client.Bucket(name), t.Context()
	if a, err := b.Update(ctx, storage.BucketAttrsToUpdate{VersioningEnabled: true}); err != nil || !a.VersioningEnabled {
		t.Fatalf("%+v, %v", a, err)
	}
	one, two := put(t, h.object("o"), []byte("one")), put(t, h.object("o"), []byte("two"))
	other := put(t, h.object("dir/p"), []byte("other"))
	if err := h.object("o").Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.object("o").Attrs(ctx); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("the live one: %v", err)
	}
	check := func(h *host) {
		t.Helper()
		b := h.client.Bucket(name)
		if got := generations(query(t, b, storage.Query{})); !slices.Equal(got, []int64{other.Generation}) {
			t.Errorf("live: %v", got)
		}
		all := query(t, b, storage.Query{Versions: true})
		if got := generations(all); !slices.Equal(got, []int64{other.Generation, one.Generation, two.Generation}) || all[1].Deleted.IsZero() || !all[0].Deleted.IsZero() {
			t.Errorf("versions: %v, %v", got, all)
		}
		if got := get(t, h.object("o").Generation(one.Generation), 0, -1); string(got) != "one" {
			t.Errorf("%q", got)
		}
	}
	check(h)
	h.Close()
	again, err := bucket.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	h = serve(t, again)
	check(h)
	// Folders are listed once, whatever is in them.
	if got := query(t, h.client.Bucket(name), storage.Query{Versions: true, Delimiter: "/"}); len(got) != 3 || got[0].Prefix+got[1].Prefix+got[2].Prefix != "dir/" {
		t.Errorf("%+v", got)
	}
	// An old generation is a source, and comes back as a new one.
	if _, err := h.object("o").CopierFrom(h.object("o").Generation(one.Generation)).Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := get(t, h.object("o"), 0, -1); string(got) != "one" {
		t.Errorf("%q", got)
	}
	for _, g := range []int64{one.Generation, two.Generation} {
		if err := h.object("o").Generation(g).Delete(ctx); err != nil {
			t.Error(err)
		}
		if err := h.object("o").Generation(g).Delete(ctx); !errors.Is(err, storage.ErrObjectNotExist) {
			t.Errorf("twice: %v", err)
		}
	}
	if got := query(t, h.client.Bucket(name), storage.Query{Versions: true, Prefix: "o"}); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestSoftDelete(t *testing.T) {
	h := start(t, t.TempDir())
	b, ctx := h.client.Bucket(name), t.Context()
	_, err := b.Update(ctx, storage.BucketAttrsToUpdate{SoftDeletePolicy: &storage.SoftDeletePolicy{RetentionDuration: time.Hour}})
	refusedFor(t, "too short", err, 400, "invalid")
	a, err := b.Update(ctx, storage.BucketAttrsToUpdate{SoftDeletePolicy: &storage.SoftDeletePolicy{RetentionDuration: 7 * 24 * time.Hour}})
	if err != nil || a.SoftDeletePolicy.RetentionDuration != 7*24*time.Hour {
		t.Fatalf("%+v, %v", a, err)
	}
	one, two := put(t, h.object("o"), []byte("one")), put(t, h.object("o"), []byte("two"))
	if err := h.object("o").Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if got := query(t, b, storage.Query{Versions: true}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	gone := query(t, b, storage.Query{SoftDeleted: true})
	if !slices.Equal(generations(gone), []int64{one.Generation, two.Generation}) || gone[0].HardDeleteTime.Sub(gone[0].SoftDeleteTime) != 7*24*time.Hour {
		t.Fatalf("%+v", gone)
	}
	if _, err := h.object("o").Generation(one.Generation).NewReader(ctx); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("read without being restored: %v", err)
	}
	if a, err := h.object("o").Generation(one.Generation).SoftDeleted().Attrs(ctx); err != nil || a.Size != 3 {
		t.Errorf("%+v, %v", a, err)
	}
	back, err := h.object("o").Generation(one.Generation).Restore(ctx, &storage.RestoreOptions{})
	if err != nil || back.Generation <= two.Generation || back.Metageneration != 1 || !back.SoftDeleteTime.IsZero() {
		t.Fatalf("%+v, %v", back, err)
	}
	if got := get(t, h.object("o"), 0, -1); !bytes.Equal(got, []byte("one")) {
		t.Errorf("%q", got)
	}
	if got := query(t, b, storage.Query{SoftDeleted: true}); len(got) != 2 {
		t.Errorf("what was restored stays soft-deleted: %+v", got)
	}
	if _, err := h.object("o").Generation(17).Restore(ctx, &storage.RestoreOptions{}); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("%v", err)
	}
}

// TestSoftDeleteEnds lets the time of a soft-deleted object go by.
func TestSoftDeleteEnds(t *testing.T) {
	dir := t.TempDir()
	h := start(t, dir)
	if err := h.SetPolicy(name, bucket.Policy{SoftDelete: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	put(t, h.object("o"), []byte("one"))
	if err := h.object("o").Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	if got := query(t, h.client.Bucket(name), storage.Query{SoftDeleted: true}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if err := h.client.Bucket(name).Delete(t.Context()); err != nil {
		t.Errorf("an empty bucket: %v", err)
	}
}

// TestDeny takes a permission at a time.
func TestDeny(t *testing.T) {
	h := start(t, t.TempDir())
	ctx := t.Context()
	put(t, h.object("a"), []byte("a"))
	calls := map[string]func() error{
		"storage.objects.list": func() error { _, err := h.client.Bucket(name).Objects(ctx, nil).Next(); return err },
		"storage.objects.get":  func() error { _, err := h.object("a").Attrs(ctx); return err },
		"storage.objects.create": func() error {
			w := h.object("b").NewWriter(ctx)
			w.Write([]byte("b"))
			return w.Close()
		},
		"storage.objects.delete": func() error { return h.object("a").Delete(ctx) },
	}
	for permission, call := range calls {
		h.Deny(permission)
		err := call()
		refusedFor(t, permission, err, http.StatusForbidden, "forbidden")
		if err != nil && !strings.Contains(err.Error(), permission) {
			t.Errorf("%v", err)
		}
	}
	w := h.object("a").NewWriter(ctx)
	w.Write([]byte("b"))
	h.Deny("storage.objects.delete")
	refusedFor(t, "overwriting", w.Close(), http.StatusForbidden, "forbidden")
	h.Deny()
	for permission, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s: %v", permission, err)
		}
		put(t, h.object("a"), []byte("a"))
	}
}
