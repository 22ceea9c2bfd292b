package stagertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

const (
	key = "org/name/0123/model.safetensors"
	dir = manifest.Private + "parts/org/name/0123/cafe/"
)

// Conform checks that a Store keeps its contract. bucket makes an empty bucket and returns what opens it:
// each call is another process's view.
func Conform(t *testing.T, bucket func(t *testing.T) func() stager.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, open func() stager.Store)
	}{
		{"objects", objects}, {"replacing", replacing}, {"one of many writers wins", oneWins}, {"listing", listing},
		{"deleting", deleting}, {"copying", copying}, {"copying onto other content", copyOccupied}, {"removing", removing},
		{"upload", uploads}, {"upload in another process", uploadLater},
		{"upload of many parts", manyParts}, {"upload onto other content", uploadOccupied},
		{"upload of what is there", uploadPresent}, {"upload with a gap", uploadGap}, {"discard", discard},
		{"two processes", twoUploads}, {"parts removed by another", partsRemoved}, {"cancelled", cancelled},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, bucket(t)) })
	}
}

// Bytes returns n bytes that look random and are the same in each run.
func Bytes(n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(data)
	return data
}

// Safetensors returns a file of n bytes, at least 100, with one tensor that looks random.
func Safetensors(n int) []byte {
	header := func(data int) string {
		return fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, data, data)
	}
	const length = 88 // with spaces behind the JSON
	text := fmt.Sprintf("%-*s", length, header(n-8-length))
	file := append(binary.LittleEndian.AppendUint64(nil, length), text...)
	return append(file, Bytes(n-len(file))...)
}

func objects(t *testing.T, open func() stager.Store) {
	s, ctx := open(), t.Context()
	if _, _, err := s.Get(ctx, key, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing: %v", err)
	}
	if r, err := s.Open(ctx, key, 0, -1); err == nil {
		r.Close()
		t.Error("Open of nothing succeeds")
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
	for _, n := range []int{0, 1, 100_000} {
		key, data := fmt.Sprintf("a/b c/%d ü#?%%", n), Bytes(n)
		must(t, s.Put(ctx, key, 0, data[:n/2], data[n/2:]))
		must(t, s.Put(ctx, key, 0, data)) // the same again
		if err := s.Put(ctx, key, 0, data, []byte("x")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: other content: %v", key, err)
		}
		if got, version, err := s.Get(ctx, key, int64(n)); err != nil || !bytes.Equal(got, data) || version == 0 {
			t.Errorf("%s: %d bytes, version %d, %v", key, len(got), version, err)
		}
		if n > 0 {
			if _, _, err := s.Get(ctx, key, int64(n)-1); err == nil {
				t.Errorf("%s: Get beyond its limit", key)
			}
		}
		if got := read(t, s, key); !bytes.Equal(got, data) {
			t.Errorf("%s: Open reads %d bytes", key, len(got))
		}
		ranges(t, s, key, data)
	}
}

// ranges reads at the edges of an object, and across its end.
func ranges(t *testing.T, s stager.Store, key string, data []byte) {
	size := int64(len(data))
	for _, r := range [][2]int64{{0, 1}, {0, size}, {0, size + 1}, {1, size - 1}, {size - 1, 1}, {size - 1, 5}, {size / 2, size / 3}, {size / 2, -1}} {
		off, n := r[0], r[1]
		if off < 0 || off >= size || n == 0 {
			continue
		}
		want := data[off:]
		if n >= 0 {
			want = data[off:min(off+n, size)]
		}
		rd, err := s.Open(t.Context(), key, off, n)
		must(t, err)
		got, err := io.ReadAll(rd)
		must(t, rd.Close())
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes from %d: read %d, %v", key, n, off, len(got), err)
		}
	}
}

func replacing(t *testing.T, open func() stager.Store) {
	s, ctx, key := open(), t.Context(), manifest.Private+"org/name/refs/main"
	must(t, s.Put(ctx, key, 0, []byte("one")))
	_, first, err := s.Get(ctx, key, 10)
	must(t, err)
	must(t, s.Put(ctx, key, first, []byte("two")))
	if err := s.Put(ctx, key, first, []byte("three")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("replacing an old version: %v", err)
	}
	must(t, s.Put(ctx, key, first, []byte("two"))) // as after a lost answer
	if got := read(t, s, key); string(got) != "two" {
		t.Errorf("now it is %q", got)
	}
	if err := s.Put(ctx, key+"x", 77, []byte("three")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("replacing nothing: %v", err)
	}
}

func oneWins(t *testing.T, open func() stager.Store) {
	const n = 8
	for round, expect := range []bool{false, true} { // where nothing is, then where something is
		key := fmt.Sprintf("%sorg/name/refs/%d", manifest.Private, round)
		var version int64
		if expect {
			s := open()
			must(t, s.Put(t.Context(), key, 0, []byte("first")))
			_, v, err := s.Get(t.Context(), key, 10)
			must(t, err)
			version = v
		}
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			s := open()
			wg.Go(func() { errs[i] = s.Put(t.Context(), key, version, []byte{byte(i)}) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			if err == nil && winner >= 0 {
				t.Errorf("%d and %d both win", winner, i)
			} else if err == nil {
				winner = i
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		}
		if winner < 0 || !bytes.Equal(read(t, open(), key), []byte{byte(winner)}) {
			t.Errorf("%d wins, and there is %v", winner, read(t, open(), key))
		}
	}
}

func listing(t *testing.T, open func() stager.Store) {
	s, ctx := open(), t.Context()
	want := []string{"a/b/1", "a/b/2/3", "a/b/z"}
	for _, key := range append([]string{"a/bc", "a/c/1", "b/1"}, want...) {
		must(t, s.Put(ctx, key, 0, []byte(key)))
	}
	var got []string
	for o, err := range s.List(ctx, "a/b/") {
		must(t, err)
		got = append(got, o.Key)
		if o.Size != int64(len(o.Key)) || o.Summed && o.CRC32C != crc32.Checksum([]byte(o.Key), manifest.Castagnoli) {
			t.Errorf("%+v", o)
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("listed %q", got)
	}
	for o, err := range s.List(ctx, "nothing/") {
		t.Errorf("nothing has %+v, %v", o, err)
	}
	for range s.List(ctx, "a/b/") {
		break
	}
}

func deleting(t *testing.T, open func() stager.Store) {
	s, ctx := open(), t.Context()
	must(t, s.Put(ctx, dir+"record", 0, []byte("x")))
	must(t, s.Delete(ctx, dir+"record"))
	must(t, s.Delete(ctx, dir+"record"))
	nothing(t, s, manifest.Private)
}

func copying(t *testing.T, open func() stager.Store) {
	s, ctx := open(), t.Context()
	for _, n := range []int{0, 1, 300_000} {
		from, key, data := fmt.Sprintf("a/b c/%d ü#?%%", n), fmt.Sprintf("a/d e/%d ü#?%%", n), Bytes(n)
		sum := crc32.Checksum(data, manifest.Castagnoli)
		if err := s.Copy(ctx, from, key, int64(n), sum); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes of nothing: %v", n, err)
		}
		must(t, s.Put(ctx, from, 0, data))
		var wrong *manifest.MismatchError
		if err := s.Copy(ctx, from, key, int64(n)+1, sum); !errors.As(err, &wrong) || wrong.Path != from {
			t.Errorf("%d bytes, expecting one more: %v", n, err)
		}
		if err := s.Copy(ctx, from, key, int64(n), sum+1); !errors.As(err, &wrong) || wrong.Path != from {
			t.Errorf("%d bytes, expecting others: %v", n, err)
		}
		nothing(t, s, "a/d e/")
		var wg sync.WaitGroup
		for range 4 { // as two stagers do, and one after a lost answer
			s := open()
			wg.Go(func() {
				if err := s.Copy(ctx, from, key, int64(n), sum); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if !bytes.Equal(read(t, s, key), data) || !bytes.Equal(read(t, s, from), data) {
			t.Errorf("%d bytes: the copy has other bytes", n)
		}
		must(t, s.Delete(ctx, manifest.Private+"parts/x")) // which leaves nothing of itself
		nothing(t, s, manifest.Private)
		remove(t, s, from)
		if !bytes.Equal(read(t, s, key), data) {
			t.Errorf("%d bytes: the copy goes with its source", n)
		}
		remove(t, s, key)
	}
}

func copyOccupied(t *testing.T, open func() stager.Store) {
	s, ctx, data := open(), t.Context(), Bytes(1000)
	must(t, s.Put(ctx, "a/from", 0, data))
	must(t, s.Put(ctx, "a/key", 0, data[:999]))
	if err := s.Copy(ctx, "a/from", "a/key", 1000, crc32.Checksum(data, manifest.Castagnoli)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Copy: %v", err)
	}
	if !bytes.Equal(read(t, s, "a/key"), data[:999]) {
		t.Error("what was there is gone")
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Copy(stopped, "a/from", "a/new", 1000, crc32.Checksum(data, manifest.Castagnoli)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// remover is what every Store can besides, for those who clean up.
type remover interface {
	Remove(ctx context.Context, listed stager.Object) error
}

func listed(t *testing.T, s stager.Store, key string) stager.Object {
	t.Helper()
	for o, err := range s.List(context.Background(), key[:strings.LastIndexByte(key, '/')+1]) {
		must(t, err)
		if o.Key == key {
			return o
		}
	}
	t.Fatalf("%s is not listed", key)
	return stager.Object{}
}

func remove(t *testing.T, s stager.Store, key string) {
	t.Helper()
	must(t, s.(remover).Remove(context.Background(), listed(t, s, key)))
}

func removing(t *testing.T, open func() stager.Store) {
	s, ctx, before := open(), t.Context(), time.Now().Add(-time.Minute)
	key, neighbour := manifest.Private+"org/name/refs/main", manifest.Private+"org/name/refs/v1"
	must(t, s.Put(ctx, key, 0, []byte("one")))
	must(t, s.Put(ctx, neighbour, 0, []byte("one")))
	first := listed(t, s, key)
	if first.Version == 0 || first.Created.Before(before) || first.Created.After(time.Now().Add(time.Minute)) {
		t.Errorf("%+v", first)
	}
	_, version, err := s.Get(ctx, key, 10)
	must(t, err)
	must(t, s.Put(ctx, key, version, []byte("two")))
	if err := s.(remover).Remove(ctx, first); !errors.Is(err, fs.ErrExist) {
		t.Errorf("removing what was replaced: %v", err)
	}
	if got := read(t, s, key); string(got) != "two" {
		t.Errorf("now it is %q", got)
	}
	second := listed(t, s, key)
	must(t, s.(remover).Remove(ctx, second))
	must(t, s.(remover).Remove(ctx, second)) // as after a lost answer
	must(t, s.Put(ctx, key, 0, []byte("two")))
	if err := s.(remover).Remove(ctx, second); !errors.Is(err, fs.ErrExist) {
		t.Errorf("removing what was made anew: %v", err)
	}
	remove(t, s, key)
	if got := read(t, s, neighbour); string(got) != "one" {
		t.Errorf("its neighbour is %q", got)
	}
	remove(t, s, neighbour)
	nothing(t, s, manifest.Private)
}

func cancelled(t *testing.T, open func() stager.Store) {
	s, data := open(), Bytes(30_000)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ps := parts(data, 10_000)
	if err := u.Write(ctx, ps[0], [][]byte{data[:10_000]}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write: %v", err)
	}
	must(t, u.Close())
	if u, err := open().Upload(t.Context(), key, dir, int64(len(data))); err != nil {
		t.Error(err)
	} else {
		must(t, u.Close())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, s stager.Store, key string) []byte {
	t.Helper()
	r, err := s.Open(context.Background(), key, 0, -1)
	must(t, err)
	defer r.Close()
	data, err := io.ReadAll(r)
	must(t, err)
	return data
}

// nothing checks that no object has the prefix.
func nothing(t testing.TB, s stager.Store, prefix string) {
	t.Helper()
	for o, err := range s.List(context.Background(), prefix) {
		t.Errorf("%s is there (%v)", o.Key, err)
	}
}
