package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

// anyFault is one of what can happen to a request for n bytes.
func anyFault(random *rand.Rand, n int64) *fetchtest.Fault {
	after := random.Int64N(n)
	switch random.IntN(10) {
	case 0:
		return &fetchtest.Fault{Err: fetchtest.ErrReset, After: after}
	case 1:
		return &fetchtest.Fault{Stall: true, After: after}
	case 2:
		return &fetchtest.Fault{Flip: true, After: after}
	case 3:
		return &fetchtest.Fault{Short: true, After: after}
	case 4:
		return &fetchtest.Fault{Err: fetchtest.Status([]int{408, 429, 500, 502, 503, 504}[random.IntN(6)])}
	case 5: // slow
		return &fetchtest.Fault{Step: 1 + int(n)/20, Pause: time.Duration(random.IntN(3000)) * time.Millisecond}
	case 6: // slow, and then cut
		return &fetchtest.Fault{Step: 1 + int(n)/8, Pause: time.Duration(random.IntN(900)) * time.Millisecond, Err: fetchtest.ErrReset, After: after}
	default:
		return &fetchtest.Fault{Step: 1 + int(n)/4, Pause: time.Duration(random.IntN(30)) * time.Millisecond}
	}
}

// Whatever mixture of faults the network brings, with readers that come and go, a load that is cancelled and
// begun anew, and few or many streams: each reader that is told that its bytes are there sees the right ones,
// and in the end there are all of them.
func TestMixtures(t *testing.T) {
	trials := 80
	if testing.Short() {
		trials = 20
	}
	models := []*fetchtest.Model{
		fetchtest.NewModel(t, "org/small", sizes()),
		fetchtest.NewModelOf(t, "org/middle", 1*mib, map[string]int{"config.json": 700, "a": 9*mib + 1, "b": 8*mib - 1}),
		fetchtest.NewModelOf(t, "org/wide", 4*mib, map[string]int{"config.json": 700, "a": 17 * mib, "b": 3 * mib}),
	}
	var requests, failed int
	second := make(map[string]float64)
	for seed := range trials {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(uint64(seed), 5))
			m := models[random.IntN(len(models))]
			var mu sync.Mutex
			faults := rand.New(rand.NewPCG(uint64(seed), 6)) // used under mu
			wrong := make(map[string]int)
			src := &fetchtest.Memory{Objects: m.Objects}
			src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
				mu.Lock()
				defer mu.Unlock()
				f := anyFault(faults, r.N)
				// Wrong bytes end a load at the fifth time, by design: not here.
				if f.Flip || f.Short {
					place := fmt.Sprint(r.Key, r.Off/m.Manifest.ChunkSize)
					if wrong[place]++; wrong[place] > 4 {
						return nil
					}
				}
				return f
			}
			entry := newEntry(t, m)
			e := run(t, fetch.Config{Source: src, Streams: random.IntN(3) * 4, InFlight: int64(1+random.IntN(3)) * 8 * mib})
			l := e.Start(entry)
			var readers sync.WaitGroup
			first := l
			for range 20 {
				file, from := random.IntN(len(m.Manifest.Files)), time.Duration(random.IntN(5000))*time.Millisecond
				size := m.Manifest.Files[file].Size
				off, patience := random.Int64N(size+1), time.Duration(random.IntN(60))*time.Second
				n := random.Int64N(size - off + 1)
				readers.Go(func() {
					time.Sleep(from)
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					err := first.Wait(ctx, file, off, n)
					if err == nil {
						checkRange(t, entry.Path(file), m.Content(m.Manifest.Files[file].Path), off, n)
					} else if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
			}
			if random.IntN(4) == 0 {
				time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				l.Cancel()
				l = e.Start(entry)
			}
			<-l.Done()
			if err := l.Err(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			readers.Wait()
			for i, f := range m.Manifest.Files {
				checkRange(t, entry.Path(i), m.Content(f.Path), 0, f.Size)
			}
			for _, outcome := range []string{"won", "lost", "failed", "not made"} {
				second[outcome] += counter(t, e, "headstart_hedges_total", outcome)
			}
			requests += len(src.Requests())
			failed += l.Progress().Refetches
		})
	}
	t.Logf("%d mixtures, %d requests, %d of them failed, second requests: %v", trials, requests, failed, second)
}

// checkRange compares bytes that a reader was told are there with the right ones.
func checkRange(t *testing.T, path string, want []byte, off, n int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	got := make([]byte, n)
	if _, err := f.ReadAt(got, off); n > 0 && err != nil || !bytes.Equal(got, want[off:off+n]) {
		t.Errorf("wrong bytes: %s from %d, %d bytes, %v", path, off, n, err)
	}
}

// A manifest that lies, in whatever field, is refused, or its load ends with an error that names the file, or
// the bytes are the bucket's: none that it vouches for are others.
func TestManifestLies(t *testing.T) {
	m := fetchtest.NewModel(t, "org/lies", map[string]int{"a": 3*chunk + 5, "b": 1, "c": 2 * chunk})
	f := m.Manifest.File("a")
	sums := func(s []uint32) (all string) {
		for _, c := range s {
			all += fmt.Sprintf("%08x", c)
		}
		return all
	}
	size := func(n int64) string { return fmt.Sprintf(`"size":%d,`, n) }
	// combined returns the line of the file a with other chunks, whose whole sum is right.
	combined := func(n int64, chunks []uint32) string {
		var whole uint32
		for i, c := range chunks {
			whole = manifest.CombineCRC32C(whole, c, min(chunk, n-int64(i)*chunk))
		}
		return fmt.Sprintf(`"path":"a","size":%d,"sha256":"%s","crc32c":"%08x","chunks":"%s"`, n, f.SHA256, whole, sums(chunks))
	}
	line := combined(f.Size, f.Chunks)
	for name, c := range map[string]struct {
		old, new string
		err      error // of Resolve; nil: the load's, which must name text
		text     string
		right    bool // the load succeeds: no byte depends on that field
	}{
		"version":           {old: `"version":1`, new: `"version":2`, err: new(manifest.VersionError)},
		"no version":        {old: `"version":1,`, new: ``, err: manifest.ErrInvalid},
		"model":             {old: `"model":"org/lies"`, new: `"model":"org/other"`, err: manifest.ErrInvalid},
		"commit":            {old: `"commit":"0`, new: `"commit":"1`, err: manifest.ErrInvalid},
		"chunk size":        {old: `"chunk_size":65536`, new: `"chunk_size":131072`, err: manifest.ErrInvalid},
		"no chunk size":     {old: `"chunk_size":65536`, new: `"chunk_size":0`, err: manifest.ErrInvalid},
		"path":              {old: `"path":"a"`, new: `"path":"a0"`, text: "a0"},
		"path outside":      {old: `"path":"a"`, new: `"path":"../a"`, err: manifest.ErrInvalid},
		"path twice":        {old: `"path":"a"`, new: `"path":"b"`, err: manifest.ErrInvalid},
		"size":              {old: size(f.Size), new: size(f.Size + chunk), err: manifest.ErrInvalid},
		"size by one":       {old: size(f.Size), new: size(f.Size + 1), err: manifest.ErrInvalid},
		"size, all else":    {old: line, new: combined(f.Size+1, f.Chunks), text: "a: size smaller"},
		"smaller, all else": {old: line, new: combined(f.Size-1, f.Chunks), text: "a: bytes 196608 to 196612: crc32c is"},
		"fewer chunks":      {old: line, new: combined(3*chunk, f.Chunks[:3]), right: true},
		"whole sum":         {old: fmt.Sprintf(`"crc32c":"%08x"`, f.CRC32C), new: `"crc32c":"00000000"`, err: manifest.ErrInvalid},
		"a chunk's sum":     {old: line, new: combined(f.Size, []uint32{f.Chunks[0], 7, f.Chunks[2], f.Chunks[3]}), text: "a: bytes 65536 to 131072: crc32c is"},
		"chunks in a turn":  {old: line, new: combined(f.Size, []uint32{f.Chunks[1], f.Chunks[0], f.Chunks[2], f.Chunks[3]}), text: "a: bytes "},
		"one chunk more":    {old: sums(f.Chunks), new: sums(f.Chunks) + "00000000", err: manifest.ErrInvalid},
		"sha256":            {old: f.SHA256.String(), new: strings.Repeat("0", 64), right: true},
		"a file more":       {old: "{" + line, new: `{"path":"0","size":0,"sha256":"` + f.SHA256.String() + `","crc32c":"00000000","chunks":""},` + "\n{" + line, right: true},
		"an unknown field":  {old: `"path":"a"`, new: `"path":"a","mode":"0777"`, err: manifest.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				raw := []byte(strings.Replace(string(m.Raw), c.old, c.new, 1))
				if bytes.Equal(raw, m.Raw) {
					t.Fatal("it is no lie")
				}
				src := &fetchtest.Memory{Objects: map[string][]byte{}}
				for key, b := range m.Objects {
					src.Objects[key] = b
				}
				src.Objects[m.Manifest.Model.Key()] = raw
				got, raw, err := fetch.Resolve(t.Context(), src, m.Ref())
				if c.err != nil {
					var version *manifest.VersionError
					if !errors.Is(err, c.err) && !(errors.As(c.err, &version) && errors.As(err, &version)) {
						t.Errorf("%v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				entry, err := openCache(t, t.TempDir()).Entry(got, raw)
				if err != nil {
					t.Fatal(err)
				}
				l := run(t, fetch.Config{Source: src}).Start(entry)
				<-l.Done()
				err = l.Err()
				if c.right != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "org/lies@") || strings.Contains(err.Error(), "\n")) {
					t.Errorf("%v", err)
				}
				if errors.Is(err, fs.ErrNotExist) != (name == "path") {
					t.Errorf("%v", err)
				}
				for i, f := range got.Files {
					for ch := range got.ChunksOf(i) {
						if entry.Have(i, ch.Index) {
							checkRange(t, entry.Path(i), src.Objects[m.Manifest.Model.Object(f.Path)], ch.Offset, ch.Size)
						}
					}
				}
			})
		})
	}
}
