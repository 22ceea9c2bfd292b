package gcs_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// serve returns an embedded bucket and what opens it.
func serve(t *testing.T) (*bucket.Server, func(wrap func(http.RoundTripper) http.RoundTripper) *gcs.Store) {
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
	return b, func(wrap func(http.RoundTripper) http.RoundTripper) *gcs.Store {
		s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Prefix: "a/prefix/", Emulator: server.URL, Wait: time.Millisecond, Attempts: 4, Wrap: wrap})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
}

func TestConform(t *testing.T) {
	stagertest.Conform(t, func(t *testing.T) func() stager.Store {
		_, open := serve(t)
		return func() stager.Store { return open(nil) }
	})
}
