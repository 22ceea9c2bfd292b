package staging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/bench/score"
	"github.com/headstart-serving/headstart/bench/usage"
)

// measure runs a way once, from an empty bucket to a full one.
func (b *bench) measure(ctx context.Context, w way, shape *link.Shape, discard bool) (r Sample, err error) {
	held, err := b.touch(ctx, w, discard)
	if err != nil {
		return r, err
	}
	s, err := b.site(ctx, shape, discard)
	defer func() { err = errors.Join(err, s.close()) }()
	if released := held.Release(); err == nil {
		err = released
	}
	if err != nil {
		return r, err
	}
	before, err := s.cpu()
	if err != nil {
		return r, err
	}
	began := time.Now()
	for _, step := range w.steps(b, s) {
		if err := b.step(ctx, s, step, began, &r); err != nil {
			return r, err
		}
	}
	r.Seconds = time.Since(began).Seconds()
	after, err := s.cpu()
	if err != nil {
		return r, err
	}
	gb := float64(b.bytes) / 1e9
	r.Rate, r.CPU, r.Servers = float64(b.bytes)/r.Seconds, r.CPU/gb, (after-before)/gb
	return r, b.landed(ctx, w, s)
}

// touch touches the memory that a run will take: the bucket's, the processes', and some of what the page
// cache will take for what lies on the disk on the way.
func (b *bench) touch(ctx context.Context, w way, discard bool) (memory.Reserve, error) {
	if !tmpfs(b.memory.Path()) {
		return memory.Reserve{}, nil
	}
	n := int64(slack)
	if !discard {
		n += b.bytes
	}
	if w.disk {
		n += max(0, min(b.bytes, (memory.Free()-n)/2))
	}
	return memory.Touch(ctx, b.memory.Path(), n)
}

// step runs one command of a way and adds what it took.
func (b *bench) step(ctx context.Context, s *site, args []string, began time.Time, r *Sample) error {
	name := filepath.Base(args[0]) + " " + args[1] // as a person calls it
	if args[0] == b.Self {
		name = "headstart " + args[1]
	}
	cmd := child.Command(ctx, args[0], args[1:]...)
	var out, said child.Tail
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env, cmd.Dir = b.environ(s.home, s.hubURL, s.bucketURL), s.home
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	w := usage.Watching(cmd.Process.Pid, s.home)
	stop := b.telling(name, began, s)
	err := cmd.Wait()
	stop()
	w.End(s.home)
	r.Memory, r.Disk = max(r.Memory, w.Memory), max(r.Disk, w.Disk)
	if err != nil {
		if len(said.Line()) == 0 {
			said = out // hf says its errors there
		}
		return child.Failed(name, err, &said)
	}
	used, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return fmt.Errorf("%s: no rusage on this system", name)
	}
	// The kernel's own peak, for what came after the last look. A new process begins with that of its parent: us.
	if rss := used.Maxrss << 10; rss > usage.HighWater(os.Getpid()) {
		r.Memory = max(r.Memory, rss)
	}
	r.CPU += float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
	return nil
}

// telling says from time to time how far a command is, until it is stopped.
func (b *bench) telling(name string, began time.Time, s *site) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		again := time.NewTicker(tell)
		defer again.Stop()
		for {
			select {
			case <-end:
				return
			case <-again.C:
				b.say("  %s: %.0f s, %s on disk, %s in the bucket's folder", name, time.Since(began).Seconds(), score.Bytes(usage.DiskUsed(s.home)), score.Bytes(usage.DiskUsed(s.bucketDir)))
			}
		}
	}()
	return func() { close(end); <-ended }
}

// cpu returns the processor time that the servers have taken, in seconds.
func (s *site) cpu() (sum float64, err error) {
	for _, p := range s.servers {
		t, err := usage.CPU(p.PID)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}
