package loading

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/replay"
)

// rank is a process of a server that reads all weights of the model in dir: nothing at first, for as long as
// head says. It returns when it began, and when it had the last weight.
type rank func(ctx context.Context, dir string, head time.Duration) (from, to time.Time, err error)

// kind is how ranks read.
type kind struct {
	name  string
	ready func(ctx context.Context, a *attempt, i int) (rank, error) // starts what has to run before the clock does
}

// The kinds.
var (
	mapped = kind{"mmap", func(_ context.Context, a *attempt, _ int) (rank, error) { return a.replay() }}
	direct = kind{"O_DIRECT", func(_ context.Context, a *attempt, _ int) (rank, error) { return a.replay("--direct") }}
	runai  = kind{"Run:ai", func(ctx context.Context, a *attempt, i int) (rank, error) { return a.streamer(ctx, i) }}
)

// ranks makes the ranks of a server ready.
func (a *attempt) ranks(ctx context.Context, k kind, n int) (list []rank, err error) {
	for i := range n {
		r, err := k.ready(ctx, a, i)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// together has all ranks read, and returns when the first began and when the last had its last weight.
func together(ctx context.Context, list []rank, dir string, head time.Duration) (from, to time.Time, err error) {
	froms, tos := make([]time.Time, len(list)), make([]time.Time, len(list))
	g, reading := errgroup.WithContext(ctx)
	for i, r := range list {
		g.Go(func() (err error) {
			froms[i], tos[i], err = r(reading, dir, head)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return from, to, err
	}
	from, to = froms[0], tos[0]
	for i := range list {
		if froms[i].Before(from) {
			from = froms[i]
		}
		if tos[i].After(to) {
			to = tos[i]
		}
	}
	return from, to, nil
}

// replay reads as vLLM does, or with O_DIRECT, and compares every byte.
func (a *attempt) replay(more ...string) (rank, error) {
	sums := filepath.Join(a.home, "sha256sums")
	if err := a.writeSums(sums); err != nil {
		return nil, err
	}
	return func(ctx context.Context, dir string, head time.Duration) (from, to time.Time, err error) {
		var r replay.Result
		var cpu float64
		var memory int64
		args := []string{a.Self, "replay", dir, "--json", "--expect", sums, "--head-start", head.String()}
		if err := a.command(ctx, &r, &cpu, &memory, append(args, more...)...); err != nil {
			return from, to, err
		}
		if !r.Verified {
			return from, to, errors.New("a reader has compared nothing")
		}
		return r.Began, r.Began.Add(time.Duration(r.Phase(replay.Weights).End * float64(time.Second))), nil
	}, nil
}

// streamer is Run:ai's on a directory. What Python and torch take to start comes before the clock. It has
// compared the tensors when it ends.
func (a *attempt) streamer(ctx context.Context, i int) (rank, error) {
	name := fmt.Sprintf("streamer%d", i)
	fifo := filepath.Join(a.home, name+".fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return nil, fmt.Errorf("making %s: %w", fifo, err)
	}
	d, err := a.daemon(name, a.Peers.Python, "-c", streamer, a.url, "--from", fifo)
	if err != nil {
		return nil, err
	}
	var files *os.File
	err = a.until(ctx, name, d, func() bool {
		f, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0) // fails until somebody reads
		files = f
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	a.open = append(a.open, files)
	return func(ctx context.Context, dir string, head time.Duration) (from, to time.Time, err error) {
		from = time.Now()
		select {
		case <-time.After(head):
		case <-ctx.Done():
			return from, to, ctx.Err()
		}
		begun := time.Now()
		for _, p := range a.paths {
			if weights(p) {
				fmt.Fprintln(files, filepath.Join(dir, filepath.FromSlash(p)))
			}
		}
		if err := files.Close(); err != nil {
			return from, to, err
		}
		select {
		case <-d.Alive.Done():
		case <-ctx.Done():
			return from, to, ctx.Err()
		}
		said, err := a.log(name)
		if err != nil {
			return from, to, err
		}
		if err := d.Err(); err != nil {
			return from, to, child.Failed(name, err, said)
		}
		var s streamed
		if err := decode(said, &s); err != nil {
			return from, to, fmt.Errorf("%s: its result: %w", name, err)
		}
		return from, begun.Add(time.Duration(s.Seconds * float64(time.Second))), a.tensors.check(s)
	}, nil
}
