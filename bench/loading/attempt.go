package loading

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/loading/reading"
	"github.com/headstart-serving/headstart/bench/place"
	"github.com/headstart-serving/headstart/bench/usage"
)

// attempt is one run of one way.
type attempt struct {
	*bench
	url     string   // of the bucket, as this run sees it
	dir     string   // empty, on the medium
	home    string   // empty, on the disk; also for mounts
	env     []string // of the processes
	daemons []*daemon
	open    []*os.File // closed again when all is over
	began   time.Time
	from    string    // where the files are; "" for dir
	own     *streamed // what a tool that times itself has said
	sums    reading.Sums
	sample  Sample
}

// daemon is a process that waits on a machine before a load begins, and whose use counts.
type daemon struct {
	*child.Daemon
	tree   *usage.Tree
	before float64 // processor time when the clock began
}

// attempt makes ready what a run needs. It is closed also after an error.
func (b *bench) attempt(url string) (*attempt, error) {
	a := &attempt{bench: b, url: url}
	var err, err2 error
	a.dir, err = folder(b.medium, "run")
	a.home, err2 = folder(b.disk.Path("home"))
	a.env = b.environ(a.home, url)
	return a, errors.Join(err, err2)
}

// measure runs a way once, from an empty folder to bytes that are there and compared.
func (b *bench) measure(ctx context.Context, w way, url string) (s Sample, err error) {
	if err := b.touch(ctx, 1); err != nil {
		return s, err
	}
	a, err := b.attempt(url)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return s, err
	}
	if w.ready != nil {
		if err := w.ready(ctx, a); err != nil {
			return s, err
		}
	}
	if err := a.timed(ctx, w.load); err != nil {
		return s, err
	}
	if err := a.verify(ctx); err != nil {
		return s, fmt.Errorf("what arrived: %w", err)
	}
	if w.done != nil {
		if err := w.done(ctx); err != nil {
			return s, err
		}
	}
	a.sample.Verified = true
	return a.sample, nil
}

// timed runs load by the clock and notes what it took.
func (a *attempt) timed(ctx context.Context, load func(context.Context, *attempt) error) error {
	servers, err := usage.TreeCPU(a.bucket.PID)
	if err != nil {
		return err
	}
	for _, d := range a.daemons {
		if d.before, err = usage.TreeCPU(d.PID); err != nil {
			return err
		}
		d.tree = usage.Looking(d.PID)
	}
	a.began = time.Now()
	err = load(ctx, a)
	s, gb := &a.sample, float64(a.manifest.Size())/1e9
	s.Seconds = time.Since(a.began).Seconds()
	for _, d := range a.daemons {
		d.tree.End()
		s.Memory += d.tree.Memory
		after, err2 := usage.TreeCPU(d.PID)
		err = errors.Join(err, err2)
		s.CPU += after - d.before
	}
	if err != nil {
		return err
	}
	if o := a.own; o != nil {
		s.Seconds, s.CPU, gb = o.Seconds, o.CPU, float64(o.Bytes)/1e9
	}
	after, err := usage.TreeCPU(a.bucket.PID)
	s.Rate, s.CPU, s.Reader, s.Servers = gb*1e9/s.Seconds, s.CPU/gb, s.Reader/gb, (after-servers)/gb
	return err
}

// verify compares what a way has delivered with the manifest: what its reader has read, else what lies in the folder.
func (a *attempt) verify(ctx context.Context) (err error) {
	if a.own != nil {
		return a.tensors.check(*a.own)
	}
	if a.sums == nil {
		if a.sums, err = reading.Files(ctx, cmp.Or(a.from, a.dir), a.paths); err != nil {
			return err
		}
	}
	return reading.Check(a.manifest, a.sums)
}

// close ends the daemons and empties home and folder.
func (a *attempt) close() error {
	for _, d := range a.daemons {
		d.End()
	}
	for _, f := range a.open {
		_ = f.Close() // it may have been closed already
	}
	err := place.RemoveTree(a.home) // with mounts
	if a.dir == "" {
		return err
	}
	return errors.Join(err, place.RemoveTree(filepath.Join(a.medium, "run")))
}

// tool runs a command to its end, as a part of the way. The last line that it says is decoded into result.
func (a *attempt) tool(ctx context.Context, result any, args ...string) error {
	return a.command(ctx, result, &a.sample.CPU, &a.sample.Memory, args...)
}

// read runs a reader of a mount to its end: its use is told apart from the way's.
func (a *attempt) read(ctx context.Context, dir string) error {
	var r struct {
		Sums reading.Sums `json:"crc32c"`
	}
	var memory int64
	args := append([]string{a.Self, "bench", "read", dir}, a.paths...)
	if err := a.command(ctx, &r, &a.sample.Reader, &memory, args...); err != nil {
		return err
	}
	a.sums = r.Sums
	return nil
}

// command runs a command and adds what it took.
func (a *attempt) command(ctx context.Context, result any, cpu *float64, memory *int64, args ...string) error {
	name := filepath.Base(args[0])
	if args[0] == a.Self {
		name = "headstart " + args[1]
	}
	cmd := child.Command(ctx, args[0], args[1:]...)
	var out, said child.Tail
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = &out, &said, a.env, a.home
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	tree := usage.Looking(cmd.Process.Pid)
	err := cmd.Wait()
	tree.End()
	*memory = max(*memory, tree.Memory)
	if err != nil {
		return child.Failed(name, err, &said)
	}
	used, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return fmt.Errorf("%s: no rusage on this system", name)
	}
	*cpu += float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
	if err := decode(&out, result); err != nil {
		return fmt.Errorf("%s: its result: %w", name, err)
	}
	return nil
}

// daemon starts a process that runs until the attempt is closed. Its log is in the home.
func (a *attempt) daemon(name string, args ...string) (*daemon, error) {
	log, err := os.Create(filepath.Join(a.home, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	d := &daemon{}
	d.Daemon, err = child.Start(log, func(ctx context.Context) *exec.Cmd {
		cmd := child.Command(ctx, args[0], args[1:]...)
		cmd.Env, cmd.Dir = a.env, a.home
		return cmd
	})
	if err != nil {
		return nil, err
	}
	a.daemons = append(a.daemons, d)
	return d, nil
}

// log returns the end of what a daemon has said.
func (a *attempt) log(name string) (*child.Tail, error) {
	said, log := new(child.Tail), filepath.Join(a.home, name+".log")
	b, err := os.ReadFile(log)
	if err != nil {
		return nil, fmt.Errorf("the log of %s: %w", name, err)
	}
	_, _ = said.Write(b) // it cannot fail
	return said, nil
}

// until waits for a daemon to be ready, as ready reports.
func (a *attempt) until(ctx context.Context, name string, d *daemon, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !ready() {
		select {
		case <-d.Alive.Done():
			said, err := a.log(name)
			if err != nil {
				return err
			}
			return child.Failed(name, d.Err(), said)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w", name, starting, ctx.Err())
		case <-again.C:
		}
	}
	return nil
}

// starting bounds how long a daemon may take until it is ready.
const starting = 30 * time.Second
