package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

func TestMemory(t *testing.T) {
	fetchtest.Conformance(t, func(t *testing.T, objects map[string][]byte) fetch.Source {
		return &fetchtest.Memory{Objects: objects}
	})
}

// Every chunk is asked for once, by its exact range, and every file is there at the end.
func TestLoad(t *testing.T) {
	m := fetchtest.NewModel(t, "org/edges", sizes())
	src := &fetchtest.Memory{Objects: m.Objects}
	entry := newEntry(t, m)
	e := run(t, fetch.Config{Source: src})
	l := e.Start(entry)
	wait(t, l)
	if !entry.Complete() {
		t.Error("the entry is not complete")
	}
	checkFiles(t, entry, m)
	want := make(map[fetchtest.Request]bool)
	for i, f := range m.Manifest.Files {
		for c := range m.Manifest.ChunksOf(i) {
			want[fetchtest.Request{Key: m.Manifest.Model.Object(f.Path), Off: c.Offset, N: c.Size, Attempt: 1}] = true
		}
		select {
		case <-l.FileDone(i):
		default:
			t.Errorf("FileDone of %s is open", f.Path)
		}
	}
	for _, r := range src.Requests() {
		if !want[r] {
			t.Errorf("unexpected request %v", r)
		}
		delete(want, r)
	}
	if len(want) > 0 {
		t.Errorf("not asked for: %v", want)
	}
	p := l.Progress()
	if p.Verified != m.Manifest.Size() || p.Fetched != p.Size || p.InFlight != 0 || p.Ended.IsZero() || p.First.IsZero() {
		t.Errorf("%+v", p)
	}
	again := e.Start(entry)
	wait(t, again)
	if p := again.Progress(); p.Fetched != 0 || p.Verified != p.Size {
		t.Errorf("a load of a complete entry: %+v", p)
	}
}

// paths turns requests into "path@chunk".
func paths(m *fetchtest.Model, requests []fetchtest.Request) []string {
	var all []string
	for _, r := range requests {
		all = append(all, fmt.Sprintf("%s@%d", strings.TrimPrefix(r.Key, m.Manifest.Model.Object("")), r.Off/chunk))
	}
	return all
}

func TestOrder(t *testing.T) {
	m := fetchtest.NewModel(t, "org/order", map[string]int{
		"model-10.safetensors": 5 * chunk, "model-2.safetensors": 5*chunk + 1, "config.json": 100,
		"tokenizer.json": 2 * chunk, "model.safetensors.index.json": 50, "empty": 0,
	})
	hold := make(chan struct{})
	begun := make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects}
	src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
		if len(src.Requests()) == 5 { // tokenizer.json is through
			close(begun)
			<-hold
		}
		return nil
	}
	entry := newEntry(t, m)
	e := run(t, fetch.Config{Source: src, Streams: 1})
	l := e.Start(entry)
	<-begun
	ready := make(chan error)
	last := 3
	go func() {
		ready <- l.Wait(t.Context(), slices.IndexFunc(m.Manifest.Files, func(f manifest.File) bool { return f.Path == "model-10.safetensors" }), int64(last)*chunk+5, 2)
	}()
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 1 })
	close(hold)
	if err := <-ready; err != nil {
		t.Error(err)
	}
	wait(t, l)
	want := []string{
		"model.safetensors.index.json@0", "config.json@0", "tokenizer.json@0", "tokenizer.json@1", "model-2.safetensors@0",
		"model-10.safetensors@3", // the demand
		"model-10.safetensors@0",
		"model-2.safetensors@1", "model-2.safetensors@2", "model-2.safetensors@3", "model-2.safetensors@4", "model-2.safetensors@5",
		"model-10.safetensors@1", "model-10.safetensors@2", "model-10.safetensors@4",
	}
	if got := paths(m, src.Requests()); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if p := l.Progress(); p.Waiting != 0 || p.Stalled <= 0 {
		t.Errorf("%+v", p)
	}
}

// waitFor polls what nothing signals.
func waitFor(t *testing.T, l *fetch.Load, ok func(fetch.Progress) bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok(l.Progress()) {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it never came")
		}
	}
}

// Small heads of a second model come before the rest of the first one.
func TestTwoLoads(t *testing.T) {
	a := fetchtest.NewModel(t, "org/a", map[string]int{"w": 6 * chunk})
	b := fetchtest.NewModel(t, "org/b", map[string]int{"config.json": 9, "w": 6 * chunk})
	objects := map[string][]byte{}
	for _, m := range []*fetchtest.Model{a, b} {
		for k, v := range m.Objects {
			objects[k] = v
		}
	}
	src := &fetchtest.Memory{Objects: objects}
	e := fetch.New(fetch.Config{Source: src, Streams: 1, Log: quiet()})
	la, lb := e.Start(newEntry(t, a)), e.Start(newEntry(t, b))
	if e.Start(la.Entry()) != la {
		t.Error("a second load of one entry")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	wait(t, la)
	wait(t, lb)
	cancel()
	<-ended
	var got []string
	for _, r := range src.Requests() {
		repo, _, _ := strings.Cut(r.Key, "/"+fetchtest.Commit)
		got = append(got, fmt.Sprint(repo, " ", r.Off/chunk))
	}
	want := []string{"org/a 0", "org/b 0", "org/b 0", "org/a 1", "org/a 2", "org/a 3", "org/a 4", "org/a 5", "org/b 1", "org/b 2", "org/b 3", "org/b 4", "org/b 5"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if l := e.Start(newEntry(t, a)); l.Err() == nil {
		t.Error("an engine that was stopped took a load")
	}
}

// counter returns the sum of the engine's counters, or gauges, of that name with that label value.
func counter(t *testing.T, e *fetch.Engine, name, label string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(e.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// A chunk that goes wrong once is fetched once more, and nobody sees the difference.
func TestFaultOnce(t *testing.T) {
	for name, c := range map[string]struct {
		fault fetchtest.Fault
		cause string
	}{
		"refused":        {fetchtest.Fault{Err: fetchtest.ErrReset}, "network"},
		"cut":            {fetchtest.Fault{Err: fetchtest.ErrReset, After: 100}, "network"},
		"cut at the end": {fetchtest.Fault{Err: fetchtest.ErrReset, After: chunk - 1}, "network"},
		"503":            {fetchtest.Fault{Err: fetchtest.Status(503)}, "server"},
		"500":            {fetchtest.Fault{Err: fetchtest.Status(500)}, "server"},
		"408":            {fetchtest.Fault{Err: fetchtest.Status(408)}, "server"},
		"429":            {fetchtest.Fault{Err: fetchtest.Status(429)}, "throttled"},
		"stalled":        {fetchtest.Fault{Stall: true}, "stalled"},
		"stalled later":  {fetchtest.Fault{Stall: true, After: 100}, "stalled"},
		"first byte":     {fetchtest.Fault{Flip: true}, "corrupt"},
		"last byte":      {fetchtest.Fault{Flip: true, After: chunk - 1}, "corrupt"},
		"short":          {fetchtest.Fault{Short: true, After: chunk - 1}, "short"},
		"nothing":        {fetchtest.Fault{Short: true}, "short"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := fetchtest.NewModel(t, "org/fault", map[string]int{"w": 6 * chunk})
				src := &fetchtest.Memory{Objects: m.Objects}
				src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
					if r.Off == 2*chunk && r.Attempt == 1 {
						return &c.fault
					}
					return nil
				}
				entry := newEntry(t, m)
				e := run(t, fetch.Config{Source: src})
				l := e.Start(entry)
				// What a reader waits for does not stand for so long: see TestHedge.
				if c.cause != "stalled" {
					if err := l.Wait(t.Context(), 0, 2*chunk, 1); err != nil {
						t.Error(err)
					}
				}
				wait(t, l)
				checkFiles(t, entry, m)
				if n := len(src.Requests()); n != 7 {
					t.Errorf("%d requests", n)
				}
				if n := counter(t, e, "headstart_refetches_total", c.cause); n != 1 || l.Progress().Refetches != 1 {
					t.Errorf("%v refetches with cause %s, %v in all", n, c.cause, counter(t, e, "headstart_refetches_total", ""))
				}
				if n := src.Refreshes(); (n == 1) != (c.cause == "corrupt") {
					t.Errorf("%d refreshes", n)
				}
			})
		})
	}
}

// A fetched file that somebody changed is its owner's: the error says that, and blames no medium.
func TestChangedFile(t *testing.T) {
	m := fetchtest.NewModel(t, "org/changed", map[string]int{"w": 2 * chunk})
	dir := t.TempDir()
	for _, want := range []string{"", "loading " + m.Manifest.Model.String() + ": " + filepath.Join(dir, "w") + " was changed"} {
		entry, err := cache.OpenDir(dir, m.Manifest, m.Raw)
		if err != nil {
			t.Fatal(err)
		}
		l := run(t, fetch.Config{Source: &fetchtest.Memory{Objects: m.Objects}, Streams: 1}).Start(entry)
		<-l.Done()
		err = l.Err()
		if want == "" && err != nil || want != "" && (err == nil || !errors.Is(err, fs.ErrExist) || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%v", err)
		}
		if err := entry.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(filepath.Join(dir, "w")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "w"), make([]byte, 2*chunk), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// What trying again does not mend ends the load at once.
func TestFinal(t *testing.T) {
	for name, c := range map[string]struct {
		err error
		ok  func(error) bool
	}{
		"404":    {fetch.Fail(fs.ErrNotExist, "gone"), func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		"403":    {fetch.Fail(fs.ErrPermission, "forbidden"), func(err error) bool { return errors.Is(err, fs.ErrPermission) }},
		"400":    {fetchtest.Status(400), func(err error) bool { return strings.Contains(err.Error(), "HTTP 400") }},
		"medium": {nil, func(err error) bool { return strings.Contains(err.Error(), "medium") }},
	} {
		t.Run(name, func(t *testing.T) {
			m := fetchtest.NewModel(t, "org/final", map[string]int{"w": 6 * chunk})
			entry := newEntry(t, m)
			src := &fetchtest.Memory{Objects: m.Objects}
			src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
				switch {
				case r.Off != 2*chunk:
					return nil
				case c.err == nil:
					// The mapping now ends before the chunk: touching it is a SIGBUS.
					if err := os.Truncate(entry.Path(0), chunk); err != nil {
						t.Error(err)
					}
					return nil
				}
				return &fetchtest.Fault{Err: c.err}
			}
			l := run(t, fetch.Config{Source: src, Streams: 1}).Start(entry)
			err := l.Wait(t.Context(), 0, 5*chunk, 1)
			if err != nil && !c.ok(err) {
				t.Error(err)
			}
			<-l.Done()
			if err := l.Err(); err == nil || !c.ok(err) || !strings.Contains(err.Error(), "org/final@") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if n := len(src.Requests()); n > 4 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Bytes that stay wrong are named, and never shown.
func TestWrongBytes(t *testing.T) {
	for name, fault := range map[string]fetchtest.Fault{"crc32c": {Flip: true, After: 77}, "size": {Short: true, After: 5}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := fetchtest.NewModel(t, "org/wrong", map[string]int{"a": 1, "w": 6 * chunk})
				src := &fetchtest.Memory{Objects: m.Objects}
				src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
					if r.Off == 2*chunk {
						return &fault
					}
					return nil
				}
				entry := newEntry(t, m)
				l := run(t, fetch.Config{Source: src}).Start(entry)
				err := l.Wait(t.Context(), 1, 2*chunk, chunk)
				var mismatch *manifest.MismatchError
				if !errors.As(err, &mismatch) || mismatch.Path != "w" || mismatch.Offset != 2*chunk || mismatch.Sum != name {
					t.Errorf("%v", err)
				}
				<-l.Done()
				if entry.Have(1, 2) || entry.Complete() || entry.FileComplete(1) {
					t.Error("the chunk counts as there")
				}
				n := 0
				for _, r := range src.Requests() {
					if r.Off == 2*chunk {
						n++
					}
				}
				if n != 5 {
					t.Errorf("%d attempts", n)
				}
			})
		})
	}
}

// While the network is down, the load says so and goes on; it ends when patience does.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/outage", map[string]int{"w": 60 * chunk})
		src := &fetchtest.Memory{Objects: m.Objects}
		begin := time.Now()
		down := time.Hour
		src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
			if time.Since(begin) < down {
				return &fetchtest.Fault{Err: fetchtest.ErrReset}
			}
			return nil
		}
		entry := newEntry(t, m)
		e := run(t, fetch.Config{Source: src, Patience: 2 * time.Hour})
		l := e.Start(entry)
		var readers sync.WaitGroup
		for range 1000 {
			readers.Go(func() {
				if err := l.Wait(t.Context(), 0, 0, chunk); err != nil {
					t.Error(err)
				}
			})
		}
		<-time.After(30 * time.Minute)
		if p := l.Progress(); !strings.Contains(p.Reason, "reset by peer") || p.Waiting != 1000 {
			t.Errorf("%+v", p)
		}
		if n := len(src.Requests()); n > 8*30*60/5+100 {
			t.Errorf("%d requests in half an hour", n)
		}
		wait(t, l)
		readers.Wait()
		if p := l.Progress(); p.Reason != "" || p.Ended.Sub(begin) > down+time.Minute {
			t.Errorf("%+v", p)
		}

		begin, down = time.Now(), 10*time.Hour
		l = e.Start(newEntry(t, m))
		<-l.Done()
		if err := l.Err(); err == nil || !strings.Contains(err.Error(), "no chunk arrived for 2h") || !strings.Contains(err.Error(), "reset by peer") {
			t.Errorf("%v", err)
		}
		if d := time.Since(begin); d > 2*time.Hour+time.Minute {
			t.Errorf("it ended after %v", d)
		}
	})
}

// Readers who come while a chunk waits for its next attempt do not make it come sooner.
func TestImpatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/impatience", map[string]int{"w": 5 * chunk})
		src := &fetchtest.Memory{Objects: m.Objects}
		src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
			if r.Off == 0 && r.Attempt <= 3 {
				return &fetchtest.Fault{Err: fetchtest.Status(503)}
			}
			return nil
		}
		l := run(t, fetch.Config{Source: src}).Start(newEntry(t, m))
		synctest.Wait()
		var readers sync.WaitGroup
		for range 1000 {
			readers.Go(func() {
				if err := l.Wait(t.Context(), 0, 0, chunk); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if n := len(src.Requests()); n != 5 {
			t.Errorf("%d requests", n)
		}
		wait(t, l)
		readers.Wait()
		if n := len(src.Requests()); n != 8 {
			t.Errorf("%d requests in the end", n)
		}
	})
}

// Patience is counted from the last chunk that arrived.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/patience", map[string]int{"w": 5 * chunk})
		src := &fetchtest.Memory{Objects: m.Objects}
		begin := time.Now()
		src.Fault = func(_ context.Context, r fetchtest.Request) *fetchtest.Fault {
			if time.Since(begin) < time.Duration(r.Off/chunk)*90*time.Minute {
				return &fetchtest.Fault{Err: fetchtest.ErrReset}
			}
			return nil
		}
		l := run(t, fetch.Config{Source: src, Patience: 2 * time.Hour}).Start(newEntry(t, m))
		wait(t, l)
		if d := time.Since(begin); d < 6*time.Hour || d > 6*time.Hour+time.Minute {
			t.Errorf("it took %v", d)
		}
	})
}

// A slow stream is no stalled one.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/slow", map[string]int{"w": 2 * chunk})
		src := &fetchtest.Memory{Objects: m.Objects}
		src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
			return &fetchtest.Fault{Step: 1000, Pause: 19 * time.Second}
		}
		wait(t, run(t, fetch.Config{Source: src}).Start(newEntry(t, m)))
		if n := len(src.Requests()); n != 2 {
			t.Errorf("%d requests", n)
		}
	})
}

// A thousand readers share one load; one that leaves takes nobody with it.
func TestWaiters(t *testing.T) {
	m := fetchtest.NewModel(t, "org/waiters", sizes())
	release := make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects}
	src.Fault = func(context.Context, fetchtest.Request) *fetchtest.Fault {
		<-release
		return nil
	}
	l := run(t, fetch.Config{Source: src}).Start(newEntry(t, m))
	ctx, cancel := context.WithCancel(t.Context())
	var readers, leavers sync.WaitGroup
	for i := range 1000 {
		file := i % len(m.Manifest.Files)
		readers.Go(func() {
			if err := l.Wait(t.Context(), file, 0, 1<<62); err != nil {
				t.Error(err)
			}
		})
		leavers.Go(func() {
			if err := l.Wait(ctx, file, 0, 1<<62); m.Manifest.Files[file].Size > 0 && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 2000*7/8 })
	cancel()
	leavers.Wait()
	close(release)
	readers.Wait()
	wait(t, l)
	if n := len(src.Requests()); n != 19 {
		t.Errorf("%d requests", n)
	}
	for _, r := range [][2]int64{{-1, 5}, {0, 0}, {0, -1}, {1 << 40, 1}} {
		if err := l.Wait(ctx, 0, r[0], r[1]); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// Cancel does not return while a stream writes to the entry, and a new load continues.
func TestCancel(t *testing.T) {
	m := fetchtest.NewModel(t, "org/cancel", map[string]int{"w": 8 * chunk})
	begun, release, stopping := make(chan struct{}, 8), make(chan struct{}), make(chan struct{})
	src := &fetchtest.Memory{Objects: m.Objects}
	src.Fault = func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		if r.Off < 2*chunk || r.Off >= 6*chunk || r.Attempt > 1 {
			return nil
		}
		begun <- struct{}{}
		<-ctx.Done()
		if r.Off == 2*chunk {
			close(stopping)
			<-release // a source that is slow to stop
		}
		return nil
	}
	entry := newEntry(t, m)
	e := run(t, fetch.Config{Source: src, Streams: 4})
	l := e.Start(entry)
	for range 4 {
		<-begun
	}
	reader := make(chan error)
	go func() { reader <- l.Wait(context.Background(), 0, 7*chunk, 1) }()
	waitFor(t, l, func(p fetch.Progress) bool { return p.Waiting == 1 })
	cancelled := make(chan struct{})
	go func() {
		l.Cancel()
		close(cancelled)
	}()
	<-stopping
	if err := <-reader; !errors.Is(err, context.Canceled) {
		t.Errorf("the reader got %v", err)
	}
	started := make(chan *fetch.Load)
	go func() { started <- e.Start(entry) }()
	select {
	case <-cancelled:
		t.Error("Cancel did not wait for the writer")
	case <-l.Done():
		t.Error("Done while a stream writes")
	case <-started:
		t.Error("a second load while a stream of the first one writes")
	default:
	}
	close(release)
	<-cancelled
	wait(t, <-started)
	if err := l.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := l.Wait(t.Context(), 0, 0, chunk); err != nil {
		t.Errorf("a chunk that is there: %v", err)
	}
	l.Cancel() // again is nothing
	checkFiles(t, entry, m)
	if n := len(src.Requests()); n != 2+4+6 {
		t.Errorf("%d requests", n)
	}
}

// Stopping the engine ends its loads and lets the readers go.
func TestStop(t *testing.T) {
	m := fetchtest.NewModel(t, "org/stop", map[string]int{"w": 8 * chunk})
	begun := make(chan struct{}, 8)
	src := &fetchtest.Memory{Objects: m.Objects}
	src.Fault = func(ctx context.Context, r fetchtest.Request) *fetchtest.Fault {
		begun <- struct{}{}
		<-ctx.Done()
		return nil
	}
	e := fetch.New(fetch.Config{Source: src, Log: quiet()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	l := e.Start(newEntry(t, m))
	<-begun
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-l.Done()
	if err := l.Wait(t.Context(), 0, 0, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Loads leave no mapping and no descriptor behind, however they end.
func TestLeaks(t *testing.T) {
	m := fetchtest.NewModel(t, "org/leaks", sizes())
	src := &fetchtest.Memory{Objects: m.Objects}
	c := openCache(t, t.TempDir())
	e := run(t, fetch.Config{Source: src})
	once := func(cancel bool) {
		entry, err := c.Entry(m.Manifest, m.Raw)
		if err != nil {
			t.Fatal(err)
		}
		l := e.Start(entry)
		if cancel {
			l.Cancel()
		}
		<-l.Done()
		if err := c.Remove(entry); err != nil {
			t.Fatal(err)
		}
	}
	once(false)
	fds, maps := open(t)
	for i := range 50 {
		once(i%2 == 0)
	}
	// The runtime may map an arena or open an epoll in between.
	if f, p := open(t); f > fds+2 || p > maps {
		t.Errorf("%d descriptors before, %d after; %d mappings of entries before, %d after", fds, f, maps, p)
	}
}

// open counts this process's descriptors and its mappings of entries' files.
func open(t *testing.T) (fds, maps int) {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(names), strings.Count(string(b), "/data/")
}

// A complete entry that the disk does not take is counted and loaded again: read back, not received.
func TestSyncFails(t *testing.T) {
	m := fetchtest.NewModel(t, "org/unsynced", sizes())
	dir := t.TempDir()
	first, err := cache.Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	entry, err := first.Entry(m.Manifest, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range m.Manifest.Files {
		for c := range m.Manifest.ChunksOf(i) {
			p, err := entry.Chunk(i, c.Index)
			if err != nil {
				t.Fatal(err)
			}
			copy(p, m.Content(f.Path)[c.Offset:])
			if err := entry.Commit(i, c.Index); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(entry.Seal(), first.Close()); err != nil {
		t.Fatal(err)
	}
	entry = openCache(t, dir).Entries()[0]
	src := &fetchtest.Memory{Objects: m.Objects}
	e := fetch.New(fetch.Config{Source: src, Log: quiet()})
	path := entry.Path(0)
	if err := errors.Join(os.Rename(path, dir+"/away"), os.Symlink(os.DevNull, path)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	e.Sync(entry)
	for entry.Complete() || counter(t, e, "headstart_sync_failures_total", "") != 1 {
		runtime.Gosched()
	}
	if err := os.Rename(dir+"/away", path); err != nil {
		t.Fatal(err)
	}
	l := e.Start(entry)
	wait(t, l)
	if p := l.Progress(); p.Fetched != 0 || p.Verified != p.Size || !entry.Complete() || len(src.Requests()) != 0 {
		t.Errorf("%+v, %d requests", p, len(src.Requests()))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
