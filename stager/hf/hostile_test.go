package hf_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hf"
)

// TestEndpointKeepsItsPassword refuses endpoints without saying what may be a secret in them.
func TestEndpointKeepsItsPassword(t *testing.T) {
	for _, endpoint := range []string{
		"https://bob:s3cret@mirror", "bob:s3cret@mirror", "https://bob:s3cret@mirror:port", "https://bob:s3cret@mir ror", "//bob:s3cret@mirror",
		"https://mirror?token=s3cret", "ftp://mirror/s3cret", "https:bob:s3cret@mirror", "https://bob:s3cret%zz@mirror",
	} {
		if _, err := hf.New(hf.Config{Endpoint: endpoint}); err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "HF_ENDPOINT") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

// TestListingWithoutEnd has directories only, or nothing at all, and always another page.
func TestListingWithoutEnd(t *testing.T) {
	for name, page := range map[string]string{"directories": `[{"type":"directory","path":"a","oid":"","size":0}]`, "nothing": `[]`} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := asked.Add(1)
				if n > 5000 {
					http.Error(w, "too often", http.StatusNotFound)
					return
				}
				w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?cursor=%d>; rel="next"`, r.Host, r.URL.Path, n))
				io.WriteString(w, page)
			}))
			defer server.Close()
			s, err := hf.New(hf.Config{Endpoint: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Files(t.Context(), model); !errors.Is(err, manifest.ErrInvalid) || asked.Load() > 5000 {
				t.Errorf("after %d pages: %v", asked.Load(), err)
			}
		})
	}
}
