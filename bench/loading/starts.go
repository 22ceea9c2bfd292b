package loading

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/manifest"
)

// start is how a server gets its model while it starts.
type start struct {
	name    string
	readers int
	// begin begins the load, as soon as the clock runs, and returns the folder that the readers are to read.
	ready func(context.Context, *attempt) error
	begin func(context.Context, *attempt) (string, error)
	done  func(context.Context) error // may be nil
}

// startName is the name of our starts, and how many ranks the server has.
const startName = "headstart node"

func (b *bench) startWays() []start {
	list := []start{nodeStart(1), nodeStart(2), {
		name: "headstart fetch, then start", readers: 1,
		ready: func(context.Context, *attempt) error { return nil },
		begin: func(ctx context.Context, a *attempt) (string, error) { return a.dir, fetchWay(fetchName).load(ctx, a) },
	}}
	if b.Peers.GCSFuse != "" {
		var dir string
		list = append(list, start{
			name: bufferedName, readers: 1,
			ready: func(ctx context.Context, a *attempt) (err error) {
				dir, err = mountBucket(ctx, a, bufferedMode)
				return err
			},
			begin: func(context.Context, *attempt) (string, error) { return dir, nil },
		})
	}
	return list
}

func nodeStart(readers int) start {
	var n *node
	return start{
		name: fmt.Sprintf("%s, tensor parallel %d", startName, readers), readers: readers,
		ready: func(ctx context.Context, a *attempt) (err error) { n, err = startNode(ctx, a); return err },
		begin: func(ctx context.Context, _ *attempt) (string, error) { return n.publish(ctx) },
		done:  func(ctx context.Context) error { return n.end(ctx) },
	}
}

// starts runs each kind of start in each round.
func (b *bench) starts(ctx context.Context, l *Loads, at string) error {
	walk, err := b.fromMemory(ctx)
	if err != nil {
		return err
	}
	transfer := float64(b.manifest.Size()) / float64(l.Link.Total)
	list := b.startWays()
	for _, s := range list {
		l.Starts = append(l.Starts, Start{
			Name: s.name, Readers: s.readers, HeadStart: b.HeadStart.Seconds(), Ideal: max(b.HeadStart.Seconds()+walk, transfer),
		})
	}
	defer func() {
		for i := range l.Starts {
			l.Starts[i].sum()
		}
	}()
	for round := range b.Rounds {
		for i := range list {
			k := (round + i) % len(list)
			took, err := b.start(ctx, list[k], at)
			if err != nil {
				return fmt.Errorf("%s: %w", list[k].name, err)
			}
			b.say("%s, round %d of %d: %s: all weights read after %.2f s, ideal %.2f s", l.Name, round+1, b.Rounds, list[k].name, took, l.Starts[k].Ideal)
			l.Starts[k].Runs = append(l.Starts[k].Runs, took)
		}
	}
	return nil
}

// fromMemory returns how long a reader takes, in seconds, when all bytes are plain files in memory.
func (b *bench) fromMemory(ctx context.Context) (seconds float64, err error) {
	if err := b.touch(ctx, 1); err != nil {
		return 0, err
	}
	a, err := b.attempt(b.url)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return 0, err
	}
	if err := fetchWay(fetchName).load(ctx, a); err != nil {
		return 0, err
	}
	var r replay.Result
	if err := a.tool(ctx, &r, a.Self, "replay", a.dir, "--json"); err != nil {
		return 0, err
	}
	return r.Phase(replay.Start).Seconds() + r.Phase(replay.Weights).Seconds(), nil
}

// start runs one start and returns how long it took until the last reader had its last weight, in seconds.
func (b *bench) start(ctx context.Context, s start, at string) (took float64, err error) {
	if err := b.touch(ctx, 1); err != nil {
		return 0, err
	}
	a, err := b.attempt(at)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return 0, err
	}
	sums := filepath.Join(a.home, "sha256sums")
	if err := b.writeSums(sums); err != nil {
		return 0, err
	}
	if err := s.ready(ctx, a); err != nil {
		return 0, err
	}
	began := time.Now()
	dir, err := s.begin(ctx, a)
	if err != nil {
		return 0, err
	}
	results := make([]replay.Result, s.readers)
	g, reading := errgroup.WithContext(ctx)
	for i := range results {
		g.Go(func() error {
			var cpu float64
			var memory int64
			return a.command(reading, &results[i], &cpu, &memory, a.Self, "replay", dir, "--json", "--expect", sums, "--head-start", b.HeadStart.String())
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	for _, r := range results {
		if !r.Verified {
			return 0, errors.New("a reader has compared nothing")
		}
		took = max(took, r.Began.Sub(began).Seconds()+r.Phase(replay.Weights).End)
	}
	if s.done != nil {
		err = s.done(ctx)
	}
	return took, err
}

func (b *bench) writeSums(path string) error {
	sums := map[string]manifest.Digest{}
	for _, f := range b.manifest.Files {
		sums[f.Path] = f.SHA256
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(replay.WriteSums(f, sums), f.Close())
}
