package stagertest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// parts divides data into parts of at most size bytes.
func parts(data []byte, size int) []stager.Part {
	var ps []stager.Part
	for off := 0; off < len(data); off += size {
		d := data[off:min(off+size, len(data))]
		ps = append(ps, stager.Part{Offset: int64(off), Size: int64(len(d)), CRC32C: crc32.Checksum(d, manifest.Castagnoli), Note: fmt.Appendf(nil, "note %d", off)})
	}
	return ps
}

func write(t testing.TB, u stager.Upload, data []byte, p stager.Part) {
	t.Helper()
	d := data[p.Offset : p.Offset+p.Size]
	// Called from goroutines too, where Fatal would not do.
	if err := u.Write(context.Background(), p, [][]byte{d[:len(d)/3], d[len(d)/3:]}); err != nil {
		t.Error(err)
	}
}

func uploads(t *testing.T, open func() stager.Store) {
	s, data := open(), Bytes(50_001)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	defer u.Close()
	if len(u.Parts()) != 0 {
		t.Errorf("it begins with %v", u.Parts())
	}
	ps := parts(data, 10_000)
	var wg sync.WaitGroup
	for _, p := range slices.Backward(ps) {
		wg.Go(func() { write(t, u, data, p) })
	}
	wg.Wait()
	nothing(t, s, "org/")
	must(t, u.Commit(t.Context(), ps))
	if !bytes.Equal(read(t, s, key), data) {
		t.Error("the object has other bytes")
	}
	nothing(t, s, dir)
}

func uploadLater(t *testing.T, open func() stager.Store) {
	data := Bytes(50_001)
	ps := parts(data, 10_000)
	u, err := open().Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	for _, i := range []int{0, 3, 5} {
		write(t, u, data, ps[i])
	}
	must(t, u.Close())
	s := open()
	peeked, err := s.(interface {
		Peek(ctx context.Context, key, dir string) ([]stager.Part, error)
	}).Peek(t.Context(), key, dir)
	must(t, err)
	if u, err = s.Upload(t.Context(), key, dir, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	left := u.Parts()
	slices.SortFunc(peeked, func(a, b stager.Part) int { return cmp.Compare(a.Offset, b.Offset) })
	if !reflect.DeepEqual(peeked, left) {
		t.Errorf("Peek says %v, Upload %v", peeked, left)
	}
	if len(left) != 3 {
		t.Fatalf("%d parts are left", len(left))
	}
	for i, p := range []stager.Part{ps[0], ps[3], ps[5]} {
		if g := left[i]; g.Offset != p.Offset || g.Size != p.Size || g.CRC32C != p.CRC32C || !bytes.Equal(g.Note, p.Note) {
			t.Errorf("part %d is %+v, want %+v", i, g, p)
		}
	}
	for _, i := range []int{1, 2, 4} {
		write(t, u, data, ps[i])
	}
	must(t, u.Commit(t.Context(), ps))
	if !bytes.Equal(read(t, s, key), data) {
		t.Error("the object has other bytes")
	}
	nothing(t, s, dir)
}

func manyParts(t *testing.T, open func() stager.Store) {
	for _, n := range []int{32, 33, 65} {
		s, data, key := open(), Bytes(n*10-3), fmt.Sprintf("%s-%d", key, n)
		u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
		must(t, err)
		ps := parts(data, 10)
		for _, p := range ps {
			write(t, u, data, p)
		}
		must(t, u.Commit(t.Context(), ps))
		must(t, u.Close())
		if !bytes.Equal(read(t, s, key), data) {
			t.Errorf("%d parts: the object has other bytes", n)
		}
		nothing(t, s, dir)
	}
}

func uploadOccupied(t *testing.T, open func() stager.Store) {
	s, data, other := open(), Bytes(30_000), Bytes(30_001)[:30_000]
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	defer u.Close()
	ps := parts(data, 10_000)
	for _, p := range ps {
		write(t, u, data, p)
	}
	must(t, open().Put(t.Context(), key, 0, other))
	if err := u.Commit(t.Context(), ps); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit: %v", err)
	}
	if !bytes.Equal(read(t, s, key), other) {
		t.Error("what was there is gone")
	}
}

func uploadPresent(t *testing.T, open func() stager.Store) {
	s, data := open(), Bytes(30_000)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	defer u.Close()
	ps := parts(data, 10_000)
	for _, p := range ps {
		write(t, u, data, p)
	}
	must(t, open().Put(t.Context(), key, 0, data))
	must(t, u.Commit(t.Context(), ps))
	nothing(t, s, dir)
}

func uploadGap(t *testing.T, open func() stager.Store) {
	s, data := open(), Bytes(30_000)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	defer u.Close()
	ps := parts(data, 10_000)
	write(t, u, data, ps[0])
	write(t, u, data, ps[2])
	for _, some := range [][]stager.Part{{ps[0], ps[2]}, {ps[0]}, {ps[2]}, nil} {
		if u.Commit(t.Context(), some) == nil {
			t.Errorf("committed with %d parts of 3", len(some))
		}
	}
	nothing(t, s, "org/")
}

func discard(t *testing.T, open func() stager.Store) {
	data := Bytes(30_000)
	s := open()
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	for _, p := range parts(data, 10_000) {
		write(t, u, data, p)
	}
	must(t, u.Discard(t.Context()))
	must(t, u.Close())
	nothing(t, s, manifest.Private)
	if u, err = open().Upload(t.Context(), key, dir, int64(len(data))); err != nil || len(u.Parts()) != 0 {
		t.Fatalf("after Discard: %v, %v", u, err)
	}
	must(t, u.Close())
}

// twoUploads lets two processes write one object at once.
func twoUploads(t *testing.T, open func() stager.Store) {
	data := Bytes(50_000)
	ps := parts(data, 10_000)
	var wg sync.WaitGroup
	for range 2 {
		s := open()
		wg.Go(func() {
			u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
			if errors.Is(err, fs.ErrExist) {
				return // the other one has finished
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer u.Close()
			for _, p := range ps {
				write(t, u, data, p)
			}
			if err := u.Commit(t.Context(), ps); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(read(t, open(), key), data) {
		t.Error("the object has other bytes")
	}
}

// partsRemoved is what happens to a process when another one has finished the whole model.
func partsRemoved(t *testing.T, open func() stager.Store) {
	s, data := open(), Bytes(30_000)
	u, err := s.Upload(t.Context(), key, dir, int64(len(data)))
	must(t, err)
	defer u.Close()
	ps := parts(data, 10_000)
	for _, p := range ps {
		write(t, u, data, p)
	}
	other := open()
	for o, err := range other.List(t.Context(), dir) {
		must(t, err)
		must(t, other.Delete(t.Context(), o.Key))
	}
	if err := u.Commit(t.Context(), ps); err == nil {
		t.Error("committed without parts")
	}
	must(t, other.Put(t.Context(), key, 0, data))
	must(t, u.Commit(t.Context(), ps))
}
