package loader_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/file"
	"github.com/headstart-serving/headstart/loader/keeper"
	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// runNode is a daemon in a process of its own: its bucket, cache and socket are in dir. A file "hold"
// in dir that says "after N" holds all chunks but the first N, one that says "slow N" holds each for up
// to N microseconds, and one that says something else holds those of objects that have it in their names.
func runNode(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(suicidal{slog.NewTextHandler(os.Stderr, nil), filepath.Join(dir, "die")})
	cfg := loader.Config{Log: log}
	if os.Getenv("LOADER_TEST_KEPT") != "" {
		parent, err := keeper.Join(keeper.FD)
		if err != nil {
			return err
		}
		defer parent.Close()
		if err := parent.Ready(); err != nil {
			return err
		}
		cfg.Keeper, cfg.Restarts = parent, parent.Restarts
		for _, k := range parent.Kept {
			cfg.Kept = append(cfg.Kept, modelfs.Kept(k))
		}
		if err := spoil(cfg.Kept, filepath.Join(dir, "spoil")); err != nil {
			return err
		}
	}
	files, err := file.New(filepath.Join(dir, "bucket"))
	if err != nil {
		return err
	}
	src := &heldSource{Source: files}
	if hold, err := os.ReadFile(filepath.Join(dir, "hold")); err == nil {
		if n, _ := fmt.Sscanf(string(hold), "after %d", &src.left); n == 1 {
			src.count = true
		} else if n, _ := fmt.Sscanf(string(hold), "slow %d", &src.slow); n == 0 {
			src.hold = string(hold)
		}
	}
	media := cache.Media{}
	if os.Getenv("LOADER_TEST_BOTH") != "" {
		media = cache.Media{Use: cache.Both, Memory: 64 << 20}
	}
	c, err := cache.OpenMedia(filepath.Join(dir, "cache"), media, log)
	if err != nil {
		return err
	}
	engine := fetch.New(fetch.Config{Source: src, Log: log})
	cfg.Cache, cfg.Engine, cfg.Source = c, engine, src
	l := loader.New(cfg)
	socket, err := control.Listen(filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return engine.Run(ctx) })
	g.Go(func() error { return l.Run(ctx) })
	g.Go(func() error { return control.New(l, log).Run(ctx, socket) })
	fmt.Println("ready", os.Getpid())
	return errors.Join(g.Wait(), c.Close())
}

type heldSource struct {
	fetch.Source
	hold  string
	count bool
	left  int64
	slow  int64
}

func (s *heldSource) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if s.hold != "" && strings.Contains(key, s.hold) || s.count && atomic.AddInt64(&s.left, -1) < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.slow > 0 {
		time.Sleep(time.Duration(rand.Int64N(s.slow)) * time.Microsecond)
	}
	return s.Source.Open(ctx, key, off, n)
}

// process is a daemon that the test can kill.
type process struct {
	*control.Client
	cmd *exec.Cmd
}

func startProcess(t *testing.T, dir string, options ...func(*exec.Cmd)) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LOADER_TEST_NODE="+dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, o := range options {
		o(cmd)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{control.Dial(filepath.Join(dir, "socket")), cmd}
	t.Cleanup(func() {
		p.kill()
		t.Log(log.String())
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "ready ") {
		t.Fatalf("the node says %q, %v", line, err)
	}
	return p
}

func (p *process) kill() {
	p.Client.Close()
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// writeBucket puts models into a folder.
func writeBucket(t *testing.T, dir string, models ...*fetchtest.Model) {
	t.Helper()
	for _, m := range models {
		for key, data := range m.Objects {
			path := filepath.Join(dir, "bucket", key)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// fetched waits until a file of a model that is loading is there, and holds it open.
func fetched(t *testing.T, at, name string, want []byte) *os.File {
	t.Helper()
	f, err := os.Open(filepath.Join(at, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v", name, err)
	}
	return f
}

// TestKilled kills the daemon while readers read: what is complete goes on, what is not ends with an
// error, and the next daemon mends all of it.
func TestKilled(t *testing.T) {
	mounttest.Need(t)
	dir := t.TempDir()
	loading, complete := model(t, "google/loading"), model(t, "google/complete")
	writeBucket(t, dir, loading, complete)
	if err := os.WriteFile(filepath.Join(dir, "hold"), []byte("google/loading/"+fetchtest.Commit+"/model-2"), 0o644); err != nil {
		t.Fatal(err)
	}
	first := startProcess(t, dir)
	stream, bind, gone := target(t), target(t), target(t)
	if err := first.Wait(t.Context(), complete.Ref(), nil); err != nil {
		t.Fatal(err)
	}
	for at, m := range map[string]*fetchtest.Model{stream: loading, bind: complete, gone: loading} {
		if _, err := first.Publish(t.Context(), m.Ref(), at); err != nil {
			t.Fatal(err)
		}
	}
	fetched(t, stream, "model-1.safetensors", loading.Content("model-1.safetensors"))
	open := fetched(t, stream, "model-1.safetensors", loading.Content("model-1.safetensors")) // complete by now
	mapping, err := unix.Mmap(int(open.Fd()), 0, 3*chunk+5, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapping)
	blocked := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(stream, "model-2.safetensors"))
		blocked <- err
	}()
	s := first.await(t, func(s loader.Status) bool { return waiting(s) > 0 })
	if s.Passthrough != "yes" {
		t.Skip("this kernel has no passthrough, and without it nothing outlives the daemon")
	}

	first.kill()
	if err := <-blocked; err == nil {
		t.Error("a read of what is not there succeeded")
	}
	if sha256.Sum256(mapping) != sha256.Sum256(loading.Content("model-1.safetensors")) {
		t.Error("the mapping of a complete file has other bytes")
	}
	got := make([]byte, 3*chunk+5)
	if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, loading.Content("model-1.safetensors")) {
		t.Errorf("an open complete file: %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(stream, "config.json")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("a new open: %v", err)
	}
	check(t, bind, complete)
	before := mounts(t, bind)
	if err := unix.Unmount(gone, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}

	if err := os.Remove(filepath.Join(dir, "hold")); err != nil {
		t.Fatal(err)
	}
	second := startProcess(t, dir)
	if p, err := second.Publish(t.Context(), loading.Ref(), stream); err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	check(t, stream, loading)
	if after := mounts(t, bind); len(after) != 1 || after[0] != before[0] {
		t.Errorf("an intact mount became %+v, before %+v", after, before)
	}
	if err := second.Wait(t.Context(), loading.Ref(), nil); err != nil {
		t.Error(err)
	}
	s = second.await(t, func(loader.Status) bool { return true })
	for _, e := range s.Entries {
		if e.Model == loading.Manifest.Model.String() && e.Fetched != 2*chunk {
			t.Errorf("%d bytes were fetched again: %+v", e.Fetched, e)
		}
		if e.State != "complete" {
			t.Errorf("%+v", e)
		}
	}
	if len(s.Leases) != 2 {
		t.Errorf("a lease without its mount stays: %+v", s.Leases)
	}
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of a dropped lease: %v", err)
	}
	if m := mounts(t, stream); len(m) != 1 || m[0].Dead() {
		t.Errorf("where the dead mount was: %+v", m)
	}
	for _, at := range []string{stream, bind, gone} {
		if err := second.Unpublish(t.Context(), at); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after unpublishing: %v", err)
		}
	}
	if m := mounts(t, filepath.Join(dir, "cache"), stream, bind, gone); len(m) > 0 {
		t.Errorf("left: %+v", m)
	}
}

// TestKilledAnywhere kills the daemon after each number of chunks, with a reader waiting for the next
// one. What was verified is not fetched again.
func TestKilledAnywhere(t *testing.T) {
	mounttest.Need(t)
	const chunks = 8
	for n := range chunks {
		dir := t.TempDir()
		m := model(t, "google/gemma")
		writeBucket(t, dir, m)
		if err := os.WriteFile(filepath.Join(dir, "hold"), fmt.Appendf(nil, "after %d", n), 0o644); err != nil {
			t.Fatal(err)
		}
		first := startProcess(t, dir)
		at := target(t)
		if _, err := first.Publish(t.Context(), m.Ref(), at); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() { read <- compare(at, m.Manifest, m.Content) }()
		s := first.await(t, func(s loader.Status) bool { return waiting(s) > 0 && s.Entries[0].InFlight == chunks-n })
		before := s.Entries[0].Verified
		first.kill()
		if err := <-read; err == nil {
			t.Errorf("after %d chunks all bytes were read", n)
		}
		if err := os.Remove(filepath.Join(dir, "hold")); err != nil {
			t.Fatal(err)
		}
		second := startProcess(t, dir)
		if err := second.Wait(t.Context(), m.Ref(), nil); err != nil {
			t.Error(err)
		}
		check(t, at, m)
		s = second.await(t, func(loader.Status) bool { return true })
		if e := s.Entries[0]; before+e.Fetched != m.Manifest.Size() || e.State != "complete" {
			t.Errorf("after %d chunks %d bytes were verified, then %d fetched: %+v", n, before, e.Fetched, e)
		}
		if err := second.Unpublish(t.Context(), at); err != nil {
			t.Error(err)
		}
	}
}

// TestWithoutRoot: a node that may not mount loads models all the same, and says what to do instead
// of publishing.
func TestWithoutRoot(t *testing.T) {
	dir := t.TempDir()
	m := model(t, "google/gemma")
	writeBucket(t, dir, m)
	p := startProcess(t, dir, func(cmd *exec.Cmd) {
		if os.Geteuid() == 0 {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER // in which it is nobody
		}
	})
	at := target(t)
	_, err := p.Publish(t.Context(), m.Ref(), at)
	if err == nil || !strings.Contains(err.Error(), "needs root") || !strings.Contains(err.Error(), "headstart fetch") {
		t.Errorf("publishing: %v", err)
	}
	if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target: %v", err)
	}
	if err := p.Wait(t.Context(), m.Ref(), nil); err != nil {
		t.Error(err)
	}
	if err := p.Unpublish(t.Context(), at); err != nil {
		t.Error(err)
	}
}

// TestStoppedAndStartedAgain: what a daemon left is mended by the next one, without a publish.
func TestStoppedAndStartedAgain(t *testing.T) {
	m, other := model(t, "google/gemma"), model(t, "google/other")
	b := newBucket(m, other)
	dir := t.TempDir()
	n := startNode(t, dir, b)
	stream, bind := target(t), target(t)
	b.hold = func(key string) bool { return strings.Contains(key, "gemma") }
	wait(t, n, other)
	publish(t, n, m, stream)
	publish(t, n, other, bind)
	blocked := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(stream, "config.json"))
		blocked <- err
	}()
	n.stop()
	if err := <-blocked; err == nil {
		t.Error("a read of what is not there succeeded")
	}
	check(t, bind, other)
	if got := files(t, filepath.Join(dir, "mnt")); len(got) > 0 {
		t.Errorf("the stopped node leaves %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "leases", "junk"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.release()
	n = startNode(t, dir, b)
	wait(t, n, m)
	check(t, stream, m)
	check(t, bind, other)
	if s := n.Status(); len(s.Leases) != 2 {
		t.Errorf("%+v", s.Leases)
	}
	if got := files(t, filepath.Join(dir, "leases")); len(got) != 2 {
		t.Errorf("leases: %q", got)
	}
	unpublish(t, n, stream)
	unpublish(t, n, bind)
	nothingLeft(t, n)
}

// await asks for the status until ok holds of it.
func (p *process) await(t *testing.T, ok func(loader.Status) bool) loader.Status {
	t.Helper()
	for {
		s, err := p.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok(s) {
			return s
		}
	}
}

func waiting(s loader.Status) int {
	n := 0
	for _, e := range s.Entries {
		n += e.Waiting
	}
	return n
}
