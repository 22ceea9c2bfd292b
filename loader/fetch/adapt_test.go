package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

const mib = 1 << 20

// link is a source behind a network: each stream has a limit, and all of them together.
type link struct {
	*fetchtest.Memory
	each, all float64 // bytes a second

	mu     sync.Mutex
	active int
	most   int
}

func (s *link) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	body, err := s.Memory.Open(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	s.most = max(s.most, s.active)
	return &linked{body, s}, nil
}

type linked struct {
	io.ReadCloser
	link *link
}

func (b *linked) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 16<<10)])
	b.link.mu.Lock()
	rate := min(b.link.each, b.link.all/float64(b.link.active))
	b.link.mu.Unlock()
	time.Sleep(time.Duration(float64(n) / rate * float64(time.Second)))
	return n, err
}

func (b *linked) Close() error {
	b.link.mu.Lock()
	defer b.link.mu.Unlock()
	b.link.active--
	return b.ReadCloser.Close()
}

// Where each stream is slow, there are more of them; where they share a limit, there are not.
func TestStreamsFollow(t *testing.T) {
	for name, c := range map[string]struct {
		all         float64
		least, most int           // streams
		within      time.Duration // eight streams need 8 s, the link alone 0 s or 8 s
	}{
		"a limit on each": {1e12, 64, 64, 2 * time.Second},
		"a limit on all":  {8 * mib, 8, 16, 9 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := fetchtest.NewModel(t, "org/streams", map[string]int{"w": 64 * mib})
				src := &link{Memory: &fetchtest.Memory{Objects: m.Objects}, each: mib, all: c.all}
				entry := newEntry(t, m)
				e := run(t, fetch.Config{Source: src})
				begin := time.Now()
				wait(t, e.Start(entry))
				if d := time.Since(begin); d > c.within || src.most < c.least || src.most > c.most {
					t.Errorf("%d streams, %v", src.most, d)
				}
				checkFiles(t, entry, m)
				if n := len(src.Requests()); n != 64*mib/chunk {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// A bucket that says that it is too much gets less.
func TestThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/throttled", map[string]int{"w": 8 * mib})
		src := &link{Memory: &fetchtest.Memory{Objects: m.Objects}, each: mib, all: 1e12}
		begin := time.Now()
		src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
			if time.Since(begin) < 2*time.Second {
				return &fetchtest.Fault{Err: fetchtest.Status(429)}
			}
			return nil
		}
		entry := newEntry(t, m)
		e := run(t, fetch.Config{Source: src})
		l := e.Start(entry)
		time.Sleep(1900 * time.Millisecond)
		if n := counter(t, e, "headstart_streams", ""); n != 2 {
			t.Errorf("%v streams", n)
		}
		wait(t, l)
		checkFiles(t, entry, m)
	})
}

// The chunks in flight have no more bytes than allowed, but for one that is larger alone.
func TestInFlight(t *testing.T) {
	for limit, most := range map[int64]int{1: 1, 3 * chunk: 3, 1 << 40: 8} {
		synctest.Test(t, func(t *testing.T) {
			m := fetchtest.NewModel(t, "org/budget", map[string]int{"w": 40 * chunk, "v": 40*chunk + 1})
			src := &link{Memory: &fetchtest.Memory{Objects: m.Objects}, each: mib, all: 1e12}
			entry := newEntry(t, m)
			wait(t, run(t, fetch.Config{Source: src, Streams: 8, InFlight: limit}).Start(entry))
			checkFiles(t, entry, m)
			if src.most != most {
				t.Errorf("%d bytes allowed, %d chunks in flight", limit, src.most)
			}
		})
	}
}

// large is a model whose chunks tell a rate.
func large(t *testing.T, chunks int) *fetchtest.Model {
	return fetchtest.NewModelOf(t, "org/large", 4*mib, map[string]int{"w": chunks * 4 * mib})
}

// at returns a fault for the first request of a chunk of a large model, and a plain connection of 100 MiB/s
// for the rest.
func at(index int, f fetchtest.Fault) func(context.Context, fetchtest.Request) *fetchtest.Fault {
	return func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
		if r.Off == int64(index)*4*mib && r.Attempt == 1 {
			return &f
		}
		return &fetchtest.Fault{Step: mib / 4, Pause: 2500 * time.Microsecond}
	}
}

// ranges returns the requests about one chunk of a large model, by offset in it and length.
func ranges(src *fetchtest.Memory, index int) []string {
	var all []string
	for _, r := range src.Requests() {
		if r.Off/(4*mib) == int64(index) {
			all = append(all, fmt.Sprintf("%dK+%dK", r.Off%(4*mib)>>10, r.N>>10))
		}
	}
	return all
}

// A connection that ends in the middle is gone on from where it was.
func TestGoesOn(t *testing.T) {
	m := large(t, 24)
	for name, c := range map[string]struct {
		fault  fetchtest.Fault
		ranges []string
		cause  string
		within time.Duration
	}{
		"cut":   {fetchtest.Fault{Err: fetchtest.ErrReset, After: 5 * mib / 2}, []string{"0K+4096K", "2560K+1536K"}, "network", 2 * time.Second},
		"stall": {fetchtest.Fault{Stall: true, After: 3 * mib}, []string{"0K+4096K", "3072K+1024K"}, "slow", 4 * time.Second},
		"slow":  {fetchtest.Fault{Step: mib / 8, Pause: 130 * time.Millisecond}, []string{"0K+4096K", "896K+3200K"}, "slow", 4 * time.Second},
		"early": {fetchtest.Fault{Err: fetchtest.ErrReset, After: mib / 4}, []string{"0K+4096K", "256K+3840K"}, "network", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &fetchtest.Memory{Objects: m.Objects, Fault: at(12, c.fault)}
				entry := newEntry(t, m)
				e := run(t, fetch.Config{Source: src, Streams: 4})
				begin := time.Now()
				l := e.Start(entry)
				wait(t, l)
				checkFiles(t, entry, m)
				if got := ranges(src, 12); !slices.Equal(got, c.ranges) {
					t.Errorf("%v", got)
				}
				if n := counter(t, e, "headstart_refetches_total", c.cause); n != 1 || l.Progress().Refetches != 1 {
					t.Errorf("%v refetches with cause %s, %v in all", n, c.cause, counter(t, e, "headstart_refetches_total", ""))
				}
				if d := time.Since(begin); d > c.within {
					t.Error(d)
				}
			})
		})
	}
}

// Where all connections are slow, none is cut for it.
func TestAllSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := large(t, 12)
		src := &fetchtest.Memory{Objects: m.Objects}
		src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
			return &fetchtest.Fault{Step: 10 << 10, Pause: time.Second}
		}
		wait(t, run(t, fetch.Config{Source: src, Streams: 4}).Start(newEntry(t, m)))
		if n := len(src.Requests()); n != 12 {
			t.Errorf("%d requests", n)
		}
	})
}

// Bytes that were wrong before a connection broke do not stay: the whole chunk is fetched again.
func TestWrongFirstPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := large(t, 8)
		other := &fetchtest.Memory{Objects: map[string][]byte{}}
		for key, b := range m.Objects {
			b = slices.Clone(b)
			b[len(b)/2+5] ^= 1 // in the chunk with index 4
			other.Objects[key] = b
		}
		src := &replaced{Memory: &fetchtest.Memory{Objects: m.Objects}, before: other, index: 4}
		entry := newEntry(t, m)
		e := run(t, fetch.Config{Source: src, Streams: 2})
		wait(t, e.Start(entry))
		checkFiles(t, entry, m)
		if got := ranges(src.Memory, 4); !slices.Equal(got, []string{"2048K+2048K", "0K+4096K"}) {
			t.Error(got)
		}
		if counter(t, e, "headstart_refetches_total", "corrupt") != 1 || counter(t, e, "headstart_refetches_total", "network") != 1 {
			t.Error("not counted")
		}
	})
}

// replaced is an object that changes while a chunk of it is read.
type replaced struct {
	*fetchtest.Memory
	before *fetchtest.Memory
	index  int64
	once   sync.Once
}

func (s *replaced) Open(ctx context.Context, key string, off, n int64) (body io.ReadCloser, err error) {
	src := s.Memory
	if off == s.index*4*mib {
		s.once.Do(func() {
			src = s.before
			src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
				return &fetchtest.Fault{Err: fetchtest.ErrReset, After: 2 * mib}
			}
		})
	}
	return src.Open(ctx, key, off, n)
}

// A chunk that a reader waits for and that is late is asked for a second time; one of the two counts.
func TestHedge(t *testing.T) {
	m := large(t, 24)
	slow := fetchtest.Fault{Step: mib / 4, Pause: 12 * time.Millisecond} // 192 ms in all: late, and through before the second is
	for name, c := range map[string]struct {
		first, second fetchtest.Fault
		outcome       string
		requests      int
		refetches     float64
		most          time.Duration // that the reader waits
	}{
		"stalled":       {fetchtest.Fault{Stall: true}, fetchtest.Fault{}, "won", 2, 0, 130 * time.Millisecond},
		"stalled later": {fetchtest.Fault{Stall: true, After: 3 * mib}, fetchtest.Fault{}, "won", 2, 0, 130 * time.Millisecond},
		"late":          {slow, fetchtest.Fault{Stall: true}, "lost", 2, 0, 200 * time.Millisecond},
		"wrong":         {slow, fetchtest.Fault{Flip: true, After: 7}, "lost", 2, 0, 200 * time.Millisecond},
		"refused":       {slow, fetchtest.Fault{Err: fetchtest.Status(503)}, "lost", 2, 0, 200 * time.Millisecond},
		"both":          {fetchtest.Fault{Stall: true, After: 2 * mib}, fetchtest.Fault{Err: fetchtest.ErrReset}, "failed", 3, 1, 1500 * time.Millisecond},
		"wrong, then right": {fetchtest.Fault{Flip: true, Step: mib / 4, Pause: 8 * time.Millisecond},
			fetchtest.Fault{Step: mib / 4, Pause: 3 * time.Millisecond}, "won", 2, 1, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const index = 12
				src := &fetchtest.Memory{Objects: m.Objects}
				src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
					switch {
					case r.Off == index*4*mib && r.Attempt == 1:
						return &c.first
					case r.Off == index*4*mib && r.Attempt == 2:
						return &c.second
					}
					return &fetchtest.Fault{Step: mib / 4, Pause: 1500 * time.Microsecond} // 24 ms a chunk
				}
				entry := newEntry(t, m)
				e := run(t, fetch.Config{Source: src, Streams: 2})
				l := e.Start(entry)
				for i := range int64(index) {
					if err := l.Wait(t.Context(), 0, i*4*mib, 1); err != nil {
						t.Error(err)
					}
				}
				begin := time.Now()
				if err := l.Wait(t.Context(), 0, index*4*mib, 1); err != nil {
					t.Error(err)
				}
				if d := time.Since(begin); d > c.most {
					t.Errorf("the reader waited for %v", d)
				}
				wait(t, l)
				checkFiles(t, entry, m)
				if got := ranges(src, index); len(got) != c.requests {
					t.Errorf("%v", got)
				}
				if n := counter(t, e, "headstart_hedges_total", c.outcome); n != 1 || counter(t, e, "headstart_hedges_total", "") != 1 {
					t.Errorf("%v were %s, of %v", n, c.outcome, counter(t, e, "headstart_hedges_total", ""))
				}
				if n := counter(t, e, "headstart_refetches_total", ""); n != c.refetches {
					t.Errorf("%v refetches", n)
				}
			})
		})
	}
}

// A file that a start needs first and whose answer does not come is asked for again before any rate is known.
func TestHedgeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/first", map[string]int{"config.json": 1000})
		src := &fetchtest.Memory{Objects: m.Objects, Fault: at(0, fetchtest.Fault{Stall: true})}
		l := run(t, fetch.Config{Source: src}).Start(newEntry(t, m))
		begin := time.Now()
		if err := l.Wait(t.Context(), 0, 0, 1); err != nil || time.Since(begin) > 1100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		wait(t, l)
	})
}

// Second requests are few, however many chunks are late, and none is made for what nobody waits for.
func TestHedgeBudget(t *testing.T) {
	for _, read := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const chunks = 60
			m := fetchtest.NewModelOf(t, "org/budget", mib, map[string]int{"w": chunks * mib})
			src := &fetchtest.Memory{Objects: m.Objects}
			src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
				if r.Attempt == 1 && r.Off > 10*mib && r.Off/mib%2 == 0 {
					return &fetchtest.Fault{Step: mib / 4, Pause: 150 * time.Millisecond}
				}
				return &fetchtest.Fault{Step: mib / 4, Pause: time.Millisecond}
			}
			e := run(t, fetch.Config{Source: src, Streams: 4})
			entry := newEntry(t, m)
			l := e.Start(entry)
			for i := range chunks {
				if err := l.Wait(t.Context(), 0, int64(i)*mib, 1); read && err != nil {
					t.Error(err)
				}
				if !read {
					break
				}
			}
			wait(t, l)
			checkFiles(t, entry, m)
			made := counter(t, e, "headstart_hedges_total", "") - counter(t, e, "headstart_hedges_total", "not made")
			if made > 2+chunks/20 || read != (made >= 2) {
				t.Errorf("%v second requests", made)
			}
			if extra := float64(len(src.Requests()) - chunks); extra != made {
				t.Errorf("%v requests more than chunks, %v of them second ones", extra, made)
			}
		})
	}
}

// Ending a load, or the engine, in the middle of a second request waits for both.
func TestHedgeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/ends", map[string]int{"config.json": 1000})
		src := &fetchtest.Memory{Objects: m.Objects}
		src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault { return &fetchtest.Fault{Stall: true} }
		e := run(t, fetch.Config{Source: src})
		entry := newEntry(t, m)
		for range 3 {
			l := e.Start(entry)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if err := l.Wait(ctx, 0, 0, 1); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			l.Cancel()
		}
		if n := len(src.Requests()); n != 5 { // the third time there was no budget
			t.Errorf("%d requests", n)
		}
	})
}
