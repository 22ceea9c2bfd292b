package bucket_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"cloud.google.com/go/storage"
)

func TestList(t *testing.T) {
	h := start(t, t.TempDir())
	for _, o := range []string{"a", "b/", "b/1", "b/2", "b/c/3", "b0", "d", "é", "z//x", "\U0001F600"} {
		h.upload(t, url.QueryEscape(o), nil)
	}
	for _, c := range []struct {
		q    storage.Query
		want string
	}{
		{storage.Query{}, "a b/ b/1 b/2 b/c/3 b0 d z//x é \U0001F600"},
		{storage.Query{Prefix: "b"}, "b/ b/1 b/2 b/c/3 b0"},
		{storage.Query{Prefix: "b/"}, "b/ b/1 b/2 b/c/3"},
		{storage.Query{Prefix: "none"}, ""},
		{storage.Query{Delimiter: "/"}, "a b/ b0 d z/ é \U0001F600"},
		{storage.Query{Delimiter: "/", Prefix: "b/"}, "b/ b/1 b/2 b/c/"},
		{storage.Query{Delimiter: "/", Prefix: "b/c"}, "b/c/"},
		{storage.Query{Delimiter: "/", Prefix: "z/"}, "z//"},
		{storage.Query{Delimiter: "/", IncludeTrailingDelimiter: true}, "a b/ b/ b0 d z/ é \U0001F600"},
		{storage.Query{StartOffset: "b/2"}, "b/2 b/c/3 b0 d z//x é \U0001F600"},
		{storage.Query{EndOffset: "b/2"}, "a b/ b/1"},
		{storage.Query{StartOffset: "b/1", EndOffset: "d", Prefix: "b"}, "b/1 b/2 b/c/3 b0"},
	} {
		// The Go client puts a page's objects before its prefixes; in pages of one the order is the service's.
		for _, page := range []string{"1", "2", "3", "1000"} {
			if got := pages(t, h, c.q, page); got != c.want {
				t.Errorf("%+v in pages of %s: %q, want %q", c.q, page, got, c.want)
			}
		}
		if got := pagesXML(t, h, c.q); c.q.StartOffset+c.q.EndOffset == "" && !c.q.IncludeTrailingDelimiter && got != c.want {
			t.Errorf("%+v over XML: %q, want %q", c.q, got, c.want)
		}
	}
	h.ask(t, "GET", "/storage/v1/b/models/o?maxResults=-1", nil).want(t, 400)
	h.ask(t, "GET", "/storage/v1/b/models/o?pageToken=x", nil).want(t, 400)
	h.ask(t, "GET", "/storage/v1/b/models/o?pageToken=AAAA", nil).want(t, 400)
	h.ask(t, "GET", "/storage/v1/b/nowhere/o", nil).want(t, 404)
	h.ask(t, "GET", "/storage/v1/b/models/o?matchGlob=*", nil).want(t, 501)
}

// pages lists with pages of a size, merging each page's objects and prefixes by name.
func pages(t *testing.T, h *host, q storage.Query, size string) string {
	t.Helper()
	v := url.Values{"prefix": {q.Prefix}, "delimiter": {q.Delimiter}, "startOffset": {q.StartOffset}, "endOffset": {q.EndOffset},
		"includeTrailingDelimiter": {fmt.Sprint(q.IncludeTrailingDelimiter)}, "maxResults": {size}}
	var list []string
	for {
		var page struct {
			NextPageToken string
			Prefixes      []string
			Items         []resource
		}
		if err := json.Unmarshal(h.ask(t, "GET", "/storage/v1/b/models/o?"+v.Encode(), nil).want(t, 200).body, &page); err != nil {
			t.Fatal(err)
		}
		var objects []string
		for _, o := range page.Items {
			objects = append(objects, o.Name)
		}
		list = append(list, merge(objects, page.Prefixes)...)
		if page.NextPageToken == "" {
			return strings.Join(list, " ")
		}
		v.Set("pageToken", page.NextPageToken)
	}
}

// merge merges two sorted lists.
func merge(a, b []string) []string {
	var out []string
	for len(a) > 0 && len(b) > 0 {
		if a[0] <= b[0] {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

func pagesXML(t *testing.T, h *host, q storage.Query) string {
	t.Helper()
	var lists [2]string
	for i, version := range []string{"1", "2"} {
		v := url.Values{"prefix": {q.Prefix}, "delimiter": {q.Delimiter}, "max-keys": {"2"}, "list-type": {version}}
		var list []string
		for {
			var page struct {
				IsTruncated           bool
				NextMarker            string
				NextContinuationToken string
				Contents              []struct{ Key string }
				CommonPrefixes        []struct{ Prefix string }
			}
			if err := xml.Unmarshal(h.ask(t, "GET", "/models?"+v.Encode(), nil).want(t, 200).body, &page); err != nil {
				t.Fatal(err)
			}
			var objects, prefixes []string
			for _, o := range page.Contents {
				objects = append(objects, o.Key)
			}
			for _, p := range page.CommonPrefixes {
				prefixes = append(prefixes, p.Prefix)
			}
			list = append(list, merge(objects, prefixes)...)
			if !page.IsTruncated {
				break
			}
			v.Set("marker", page.NextMarker)
			v.Set("continuation-token", page.NextContinuationToken)
		}
		lists[i] = strings.Join(list, " ")
	}
	if lists[0] != lists[1] {
		t.Errorf("%+v: versions 1 and 2 of the XML list differ: %q, %q", q, lists[0], lists[1])
	}
	return lists[1]
}

func TestBuckets(t *testing.T) {
	h := start(t, t.TempDir())
	ctx := t.Context()
	b := h.client.Bucket("second-bucket")
	if err := b.Create(ctx, "project", &storage.BucketAttrs{Location: "europe-west4", Labels: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Create(ctx, "project", nil); status(err) != 409 {
		t.Errorf("second create: %v", err)
	}
	a, err := b.Attrs(ctx)
	if err != nil || a.Location != "EUROPE-WEST4" || a.Labels["k"] != "v" || a.MetaGeneration != 1 || !a.UniformBucketLevelAccess.Enabled {
		t.Fatalf("%+v, %v", a, err)
	}
	var u storage.BucketAttrsToUpdate
	u.SetLabel("x", "y")
	u.DeleteLabel("k")
	if a, err = b.If(storage.BucketConditions{MetagenerationMatch: 1}).Update(ctx, u); err != nil || a.Labels["x"] != "y" || len(a.Labels) != 1 || a.MetaGeneration != 2 {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := b.If(storage.BucketConditions{MetagenerationMatch: 1}).Update(ctx, u); status(err) != 412 {
		t.Errorf("stale update: %v", err)
	}
	put(t, b.Object("o"), nil)
	if err := b.Delete(ctx); status(err) != 409 {
		t.Errorf("delete of a full bucket: %v", err)
	}
	var list struct{ Items []resource }
	if err := json.Unmarshal(h.ask(t, "GET", "/storage/v1/b?project=p", nil).want(t, 200).body, &list); err != nil || len(list.Items) != 2 || list.Items[0].Name != "models" {
		t.Errorf("%+v %v", list, err)
	}
	if err := b.Object("o").Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx); err != nil {
		t.Error(err)
	}
	if _, err := b.Attrs(ctx); !errors.Is(err, storage.ErrBucketNotExist) {
		t.Errorf("after the delete: %v", err)
	}
	h.ask(t, "POST", "/storage/v1/b", []byte(`{"name":"with-folders","hierarchicalNamespace":{"enabled":true}}`)).want(t, 501)
	h.ask(t, "PUT", "/third-bucket", nil).want(t, 200)
	h.ask(t, "HEAD", "/third-bucket", nil).want(t, 200)
	h.ask(t, "DELETE", "/third-bucket", nil).want(t, 204)
	for _, bad := range []string{"", "ab", "UPPER", "-a-", "a..b", "192.168.0.1", "goog-x", "my-google", strings.Repeat("x", 64), "a/b", ".", "..", "a\x00b"} {
		if err := h.CreateBucket(bad); err == nil {
			t.Errorf("bucket %q was made", bad)
		}
	}
}
