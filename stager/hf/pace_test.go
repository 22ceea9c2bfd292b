package hf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

func TestPace(t *testing.T) {
	const MB = 1e6
	for name, test := range map[string]struct {
		rates  []float64 // of the stretches before, bytes a second
		watch  time.Duration
		n      int64
		d      time.Duration
		behind bool
	}{
		"nobody to compare with": {nil, time.Minute, 0, time.Hour, false},
		"too few":                {[]float64{MB, MB, MB}, time.Minute, 0, time.Hour, false},
		"fast ones":              {[]float64{80 * MB, 90 * MB, 70 * MB, 80 * MB}, 2 * time.Second, 100 << 10, 2 * time.Second, true},
		"an eighth":              {[]float64{80 * MB, 80 * MB, 80 * MB, 80 * MB}, 2 * time.Second, 20 * MB, 2 * time.Second, false},
		"less than an eighth":    {[]float64{80 * MB, 80 * MB, 80 * MB, 80 * MB}, 2 * time.Second, 19 * MB, 2 * time.Second, true},
		"slow ones":              {[]float64{MB, MB, MB, MB}, 8388608 * time.Microsecond, MB, 8 * time.Second, false},
		"one is very fast":       {[]float64{MB, MB, MB, MB, 900 * MB}, 8388608 * time.Microsecond, 2 * MB, 8 * time.Second, false},
		"very slow ones":         {[]float64{1000, 1000, 1000, 1000}, time.Minute, 10, time.Minute, true},
		"all stand":              {[]float64{0, 0, 0, 0}, time.Minute, 0, time.Minute, false},
	} {
		p := &pace{shortest: 2 * time.Second, longest: time.Minute}
		for _, r := range test.rates {
			p.add(int64(r), time.Second)
		}
		if got := p.watch(); got.Round(time.Microsecond) != test.watch {
			t.Errorf("%s: watched for %v, want %v", name, got, test.watch)
		}
		if got := p.behind(test.n, test.d); got != test.behind {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestPaceOfAll lets the whole link become slow: a few are behind what was, then what is counts.
func TestPaceOfAll(t *testing.T) {
	p := &pace{shortest: time.Second, longest: time.Minute}
	for range 100 {
		p.add(80e6, time.Second)
	}
	behind := 0
	for range 100 {
		if p.behind(1e6, time.Second) {
			behind++
		}
	}
	if behind > len(p.recent)/2+1 {
		t.Errorf("%d of 100 connections that are as slow as the rest are behind", behind)
	}
}

// lane is a server whose connections have speeds: the n-th request for bytes gets speed(n) bytes a second.
type lane struct {
	speed func(n int) int64

	mu     sync.Mutex
	ranges []string
}

func (l *lane) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{"X-Repo-Commit": {hubCommit}, "X-Linked-Size": {fmt.Sprint(laneSize)}}
	if r.Method == http.MethodHead {
		return &http.Response{StatusCode: 200, Header: h, Body: http.NoBody, Request: r}, nil
	}
	l.mu.Lock()
	n := len(l.ranges)
	l.ranges = append(l.ranges, r.Header.Get("Range"))
	speed := l.speed(n)
	l.mu.Unlock()
	var from, last int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &last); err != nil {
		return nil, err
	}
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, last, int64(laneSize)))
	return &http.Response{StatusCode: 206, Header: h, Request: r, Body: &lazy{r: r, at: from, end: last + 1, speed: speed}}, nil
}

const (
	laneSize  = 1 << 40
	hubCommit = "0123456789012345678901234567890123456789"
)

// stamp is how often the bytes of lazy tell their offset, in bytes.
const stamp = 4 << 10

// lazy gives its bytes in their time.
type lazy struct {
	r       *http.Request
	at, end int64
	speed   int64
}

func (b *lazy) Read(p []byte) (int, error) {
	if b.at == b.end {
		return 0, io.EOF
	}
	n := min(int64(len(p)), 256<<10, b.end-b.at)
	wait := time.Duration(1 << 62)
	if b.speed > 0 {
		wait = time.Duration(n * int64(time.Second) / b.speed)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.r.Context().Done():
		return 0, b.r.Context().Err()
	}
	for i := int64(0); i < n; i += stamp {
		binary.LittleEndian.PutUint64(p[i:], uint64(b.at+i))
	}
	b.at += n
	return int(n), nil
}

func (b *lazy) Close() error { return nil }

// readLanes reads so many ranges of 4 MiB over streams connections at once, and returns how long it took.
func readLanes(t *testing.T, l *lane, ranges, streams int) (*Source, time.Duration, error) {
	t.Helper()
	s, err := New(Config{Endpoint: "http://hub.test", Stall: time.Hour, Wrap: func(http.RoundTripper) http.RoundTripper { return l }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const size = 4 << 20
	began := time.Now()
	queue := make(chan int64, ranges)
	for i := range ranges {
		queue <- int64(i) * size
	}
	close(queue)
	errs := make([]error, streams)
	var group sync.WaitGroup
	for i := range streams {
		group.Go(func() {
			for off := range queue {
				r, err := s.Open(t.Context(), manifest.Model{Repo: "org/name", Commit: hubCommit}, stager.RemoteFile{Path: "f", Size: laneSize}, off, size)
				if err == nil {
					err = verify(r, off, size)
				}
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	group.Wait()
	return s, time.Since(began), errors.Join(errs...)
}

func verify(r io.ReadCloser, off, size int64) error {
	defer r.Close()
	data := make([]byte, size+1)
	if n, err := io.ReadFull(r, data); err != io.ErrUnexpectedEOF || int64(n) != size {
		return fmt.Errorf("%d bytes, %w", n, err)
	}
	for i := int64(0); i < size; i += stamp {
		if got := binary.LittleEndian.Uint64(data[i:]); got != uint64(off+i) {
			return fmt.Errorf("at %d the bytes of %d", off+i, got)
		}
	}
	return nil
}

// TestBehind lets some connections starve or stand. They are cut after seconds, not after Stall, and
// nothing is asked for twice.
func TestBehind(t *testing.T) {
	const fast = 40 << 20
	for name, test := range map[string]struct {
		speed  func(n int) int64
		behind int64
		within time.Duration
	}{
		"all alike":       {func(int) int64 { return fast }, 0, 10 * time.Second},
		"all slow":        {func(int) int64 { return 1 << 20 }, 0, 200 * time.Second},
		"uneven":          {func(n int) int64 { return fast >> (n % 3) }, 0, 20 * time.Second},
		"one starves":     {func(n int) int64 { return pick(n == 20, 100<<10, fast) }, 1, 12 * time.Second},
		"one stands":      {func(n int) int64 { return pick(n == 20, 0, fast) }, 1, 12 * time.Second},
		"some starve":     {func(n int) int64 { return pick(n > 8 && n%9 == 0, 10<<10, fast) }, 7, 20 * time.Second},
		"it becomes slow": {func(n int) int64 { return pick(n > 30, 1<<20, fast) }, 9, 200 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &lane{speed: test.speed}
				s, took, err := readLanes(t, l, 64, 8)
				stalled, behind := s.Cuts()
				if err != nil || stalled != 0 || behind > test.behind || behind == 0 && test.behind > 0 || took > test.within {
					t.Errorf("%v, %d stalled, %d behind, want at most %d, in %v", err, stalled, behind, test.behind, took)
				}
				if got := int64(len(l.ranges)); got != 64+behind {
					t.Errorf("%d requests", got)
				}
			})
		})
	}
}

func pick(a bool, x, y int64) int64 {
	if a {
		return x
	}
	return y
}

// TestBehindIsBounded reads what is slow on every connection while others are fast.
func TestBehindIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lane{}
		l.speed = func(n int) int64 {
			return pick(strings.HasSuffix(l.ranges[n], "-4194303"), 200<<10, 40<<20)
		}
		s, _, err := readLanes(t, l, 100, 8)
		if _, behind := s.Cuts(); err != nil || behind != maxCuts || len(l.ranges) != 100+maxCuts {
			t.Errorf("%v, %d behind, %d requests", err, behind, len(l.ranges))
		}
	})
}
