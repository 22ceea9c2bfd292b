package gcs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

// TestNames writes objects whose names mean something in a URL, and lists them.
func TestNames(t *testing.T) {
	b, open := serve(t)
	s := open(nil)
	names := []string{"a b", "a+b", "a%2Fb", "a?b=c", "a#b", "ä/ö", "a&b;c", "a:b", "a\\b", "it's", `"q"`, "a//b", "~", "=", "@"}
	for _, name := range names {
		must(t, s.Put(t.Context(), "n/"+name, 0, []byte(name)))
		if data, _, err := s.Get(t.Context(), "n/"+name, 100); err != nil || string(data) != name {
			t.Errorf("%q: %q, %v", name, data, err)
		}
	}
	var listed []string
	for o, err := range s.List(t.Context(), "n/") {
		must(t, err)
		listed = append(listed, strings.TrimPrefix(o.Key, "n/"))
	}
	if slices.Sort(names); !slices.Equal(listed, names) {
		t.Errorf("%q, want %q", listed, names)
	}
	if n := ops(b)["insert"]; n != len(names) {
		t.Errorf("%d writes", n)
	}
}

// TestUploadAnswers is a service that does not say, or says wrongly, what it has stored.
func TestUploadAnswers(t *testing.T) {
	data := []byte("0123456789")
	for name, test := range map[string]struct {
		headers []string
		status  int
		body    string
		class   error
		text    string
	}{
		"no generation":  {nil, 200, "", nil, "does not come from Cloud Storage"},
		"bad generation": {[]string{"X-Goog-Generation", "-1"}, 200, "", nil, "without a generation"},
		"other bytes":    {[]string{"X-Goog-Generation", "1", "X-Goog-Hash", "md5=x, crc32c=AAAAAA=="}, 200, "", nil, "AAAAAA=="},
		"page":           {nil, 403, "<html><body>proxy</body></html>", nil, "Forbidden"},
		"json":           {nil, 403, `{"error":{"message":"no storage.objects.create"}}`, nil, "no storage.objects.create"},
		"xml":            {nil, 403, `<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Denied.</Message><Details>sa lacks it</Details></Error>`, nil, "Denied. sa lacks it"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got, err := io.ReadAll(r.Body)
				if err != nil || !bytes.Equal(got, data) || r.Header.Get("X-Goog-If-Generation-Match") != "0" || r.Header.Get("X-Goog-Hash") != "crc32c=KAwGng==" {
					t.Errorf("%q %v, %v", got, r.Header, err)
				}
				for h := range slices.Chunk(test.headers, 2) {
					w.Header().Add(h[0], h[1])
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			defer server.Close()
			s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL, Wait: time.Millisecond, Attempts: 2})
			must(t, err)
			defer s.Close()
			err = s.Put(t.Context(), key, 0, data[:4], nil, data[4:])
			if err == nil || test.class != nil && !errors.Is(err, test.class) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestMemoryIsGivenBack changes the memory at once when a write that was cut short has returned: whatever a
// transport still does, it does not read it any more. The race detector is the judge.
func TestMemoryIsGivenBack(t *testing.T) {
	reading, over := make(chan struct{}, 100), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("prefix") {
			io.WriteString(w, "{}")
			return
		}
		io.ReadFull(r.Body, make([]byte, 100<<10))
		reading <- struct{}{}
		<-over
	}))
	defer server.Close()
	defer close(over)
	s, err := gcs.New(t.Context(), gcs.Config{Bucket: "models", Emulator: server.URL})
	must(t, err)
	defer s.Close()
	u, err := s.Upload(t.Context(), key, dir, 64<<20)
	must(t, err)
	data := stagertest.Bytes(32 << 20)
	for range 5 {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-reading
			cancel(fmt.Errorf("enough"))
		}()
		p := stager.Part{Size: int64(len(data)), CRC32C: crc32.Checksum(data, manifest.Castagnoli)}
		if err := u.Write(ctx, p, [][]byte{data[:16<<20], data[16<<20:]}); err == nil {
			t.Error("it is written")
		}
		clear(data)
	}
}
