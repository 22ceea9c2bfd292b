package gcs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// TestCopyBudget counts the requests of a copy: one that the service ends at once, and one in four steps.
func TestCopyBudget(t *testing.T) {
	data := stagertest.Bytes(4_000)
	sum := crc32.Checksum(data, manifest.Castagnoli)
	for step, rewrites := range map[int64]int{0: 1, 4_000: 1, 1_000: 4, 3_999: 2} {
		b, open := serve(t)
		b.RewriteAtOnce = step
		s := open(func(c *gcs.Config) { c.Stall = time.Minute })
		must(t, s.Put(t.Context(), "a/from", 0, data))
		b.ResetRequests()
		must(t, s.Copy(t.Context(), "a/from", "b/key", int64(len(data)), sum))
		if got, want := ops(b), map[string]int{"get": 1, "rewrite": rewrites}; !maps.Equal(got, want) {
			t.Errorf("in steps of %d: %v, want %v", step, got, want)
		}
		if got, _, err := s.Get(t.Context(), "b/key", 10_000); err != nil || !bytes.Equal(got, data) {
			t.Errorf("in steps of %d: %d bytes, %v", step, len(got), err)
		}
	}
}

// TestCopyFaults lets each request of a copy and of a removal meet each fault, before it is applied and after.
func TestCopyFaults(t *testing.T) {
	data := stagertest.Bytes(4_000)
	sum := crc32.Checksum(data, manifest.Castagnoli)
	for _, fault := range []string{"return-408", "return-429", "return-500", "return-503", "return-504", "return-reset-connection", "stall-always", "return-broken-stream"} {
		for _, op := range []string{"get", "rewrite", "delete"} {
			for skip := range 3 {
				if op == "delete" && (strings.HasPrefix(fault, "stall") || strings.HasSuffix(fault, "stream")) {
					continue // its answer has no body to stall or break
				}
				b, open := serve(t)
				b.RewriteAtOnce = 1_500
				s := open(nil)
				must(t, s.Put(t.Context(), "a/from", 0, data))
				plan := append(make([]string, skip), fault)
				must(t, b.Plan("storage.objects."+op, plan...))
				if err := s.Copy(t.Context(), "a/from", "b/key", int64(len(data)), sum); err != nil {
					t.Errorf("%s at %s %d: %v", fault, op, skip, err)
				}
				for o, err := range s.List(t.Context(), "b/") {
					must(t, err)
					if o.Size != 4_000 || o.CRC32C != sum {
						t.Errorf("%s at %s %d: %+v", fault, op, skip, o)
					}
					must(t, s.Remove(t.Context(), o))
				}
				for o := range s.List(t.Context(), "b/") {
					t.Errorf("%s at %s %d: %s is left", fault, op, skip, o.Key)
				}
			}
		}
	}
}

// onRewrite is a network that does something before or after rewrites.
type onRewrite struct {
	http.RoundTripper
	before func(*http.Request)
	after  func(map[string]any) // to the answer
}

func (o onRewrite) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.Contains(r.URL.Path, "/rewriteTo/") {
		return o.RoundTripper.RoundTrip(r)
	}
	if o.before != nil {
		o.before(r)
	}
	answer, err := o.RoundTripper.RoundTrip(r)
	if err != nil || o.after == nil {
		return answer, err
	}
	defer answer.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		return nil, err
	}
	o.after(body)
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	answer.Header.Del("Content-Length")
	return answer, nil
}

// TestCopyOfWhatChanges replaces the source between the look at it and the copy: nothing is made.
func TestCopyOfWhatChanges(t *testing.T) {
	_, open := serve(t)
	plain, data := open(nil), stagertest.Bytes(4_000)
	sum := crc32.Checksum(data, manifest.Castagnoli)
	must(t, plain.Put(t.Context(), "a/from", 0, data))
	s := open(func(c *gcs.Config) {
		c.Wrap = func(next http.RoundTripper) http.RoundTripper {
			return onRewrite{RoundTripper: next, before: func(r *http.Request) {
				q := r.URL.Query()
				if q.Get("ifGenerationMatch") != "0" || q.Get("ifSourceGenerationMatch") == "" || q.Get("sourceGeneration") != q.Get("ifSourceGenerationMatch") {
					t.Errorf("the preconditions are %s", r.URL.RawQuery)
				}
				_, version, err := plain.Get(t.Context(), "a/from", 10_000)
				must(t, err)
				must(t, plain.Put(t.Context(), "a/from", version, data[1:]))
			}}
		}
	})
	if err := s.Copy(t.Context(), "a/from", "b/key", int64(len(data)), sum); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for o := range plain.List(t.Context(), "b/") {
		t.Errorf("%s is there", o.Key)
	}
}

// TestWrongCopyIsRemoved copies with a service that declares other bytes of the copy.
func TestWrongCopyIsRemoved(t *testing.T) {
	for field, value := range map[string]any{"crc32c": "AAAAAA==", "size": "3999"} {
		_, open := serve(t)
		plain, data := open(nil), stagertest.Bytes(4_000)
		must(t, plain.Put(t.Context(), "a/from", 0, data))
		s := open(func(c *gcs.Config) {
			c.Wrap = func(next http.RoundTripper) http.RoundTripper {
				return onRewrite{RoundTripper: next, after: func(answer map[string]any) { answer["resource"].(map[string]any)[field] = value }}
			}
		})
		var wrong *manifest.MismatchError
		if err := s.Copy(t.Context(), "a/from", "b/key", 4_000, crc32.Checksum(data, manifest.Castagnoli)); !errors.As(err, &wrong) || wrong.Sum != field {
			t.Errorf("%s: %v", field, err)
		}
		for o := range plain.List(t.Context(), "b/") {
			t.Errorf("%s: %s is there", field, o.Key)
		}
	}
}
