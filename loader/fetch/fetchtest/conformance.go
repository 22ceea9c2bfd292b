package fetchtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// Conformance checks that a source keeps the contract of [fetch.Source]. bucket returns a source of
// exactly these objects.
func Conformance(t *testing.T, bucket func(t *testing.T, objects map[string][]byte) fetch.Source) {
	const n = 1000
	content := bytes.Repeat([]byte("0123456789abcdef"), 3*n/16+1)[:2*n+1]
	objects := map[string][]byte{
		"org/model/config.json":                    []byte("{}"),
		"org/model/big":                            content,
		"org/model/sub/größe & \"1\" 100%+?#.json": []byte("odd"),
		"org/model-2/x":                            []byte("x"),
		"org/empty":                                {},
		".headstart/org/model/refs/refs%2Fpr%2F1":  []byte(Commit),
	}
	src := bucket(t, objects)

	t.Run("ranges", func(t *testing.T) {
		for _, r := range [][2]int64{{0, 1}, {0, n}, {0, 2*n + 1}, {1, n}, {n - 1, 1}, {n, n}, {n + 1, n}, {2 * n, 1}} {
			body, err := src.Open(t.Context(), "org/model/big", r[0], r[1])
			if err != nil {
				t.Errorf("%v: %v", r, err)
				continue
			}
			got := make([]byte, r[1])
			if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
				t.Errorf("%v: %d bytes, %v: not the object's", r, len(got), err)
			}
			if err := body.Close(); err != nil {
				t.Errorf("%v: closing: %v", r, err)
			}
		}
	})
	t.Run("end", func(t *testing.T) {
		for _, r := range [][2]int64{{n, 2 * n}, {2*n + 1, 1}, {1 << 40, 1}} {
			body, err := src.Open(t.Context(), "org/model/big", r[0], r[1])
			if err == nil {
				var got int
				got, err = io.ReadFull(body, make([]byte, r[1]))
				if err == io.ErrUnexpectedEOF && got == max(0, 2*n+1-int(r[0])) {
					err = io.EOF
				}
				body.Close()
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("%v: %v, want io.EOF", r, err)
			}
		}
	})
	t.Run("missing", func(t *testing.T) {
		for _, key := range []string{"org/model/none", "org", "org/model", "org/model/big/x"} {
			if _, err := src.Open(t.Context(), key, 0, 1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open %s: %v", key, err)
			}
			if _, err := src.Get(t.Context(), key, 1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Get %s: %v", key, err)
			}
		}
	})
	t.Run("get", func(t *testing.T) {
		for key, want := range objects {
			if got, err := src.Get(t.Context(), key, int64(len(want))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v", key, len(got), err)
			}
			if len(want) == 0 {
				continue
			}
			if _, err := src.Get(t.Context(), key, int64(len(want))-1); !errors.Is(err, manifest.ErrInvalid) {
				t.Errorf("%s with a limit that is too small: %v", key, err)
			}
		}
	})
	t.Run("list", func(t *testing.T) {
		for _, prefix := range []string{"", "org/model/", "org/model", "org/mod", ".headstart/", "none/", "org/model/big"} {
			var got, want []string
			for obj, err := range src.List(t.Context(), prefix) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, fmt.Sprintf("%s %d", obj.Key, obj.Size))
			}
			for key, b := range objects {
				if strings.HasPrefix(key, prefix) {
					want = append(want, fmt.Sprintf("%s %d", key, len(b)))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%q: %q, want %q", prefix, got, want)
			}
		}
		for range src.List(t.Context(), "org/") {
			break
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		body, err := src.Open(ctx, "org/model/big", 0, n)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		body.Close()
		if _, err := src.Open(ctx, "org/model/big", 0, n); !errors.Is(err, context.Canceled) {
			t.Errorf("Open: %v", err)
		}
		if _, err := src.Get(ctx, "org/model/big", 3*n); !errors.Is(err, context.Canceled) {
			t.Errorf("Get: %v", err)
		}
		for _, err := range src.List(ctx, "") {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("List: %v", err)
			}
		}
	})
	t.Run("at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				off := int64(i * 40)
				body, err := src.Open(t.Context(), "org/model/big", off, n/2)
				if err != nil {
					t.Error(err)
					return
				}
				defer body.Close()
				got := make([]byte, n/2)
				if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, content[off:off+n/2]) {
					t.Errorf("%d: %v", off, err)
				}
			})
		}
		wg.Wait()
	})
}
