package loading

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/manifest"
)

// start is how a server gets its model while it starts.
type start struct {
	name    string
	by      kind // its ranks' way to read
	readers int  // ranks of one server
	ready   func(context.Context, *attempt) error
	begin   func(context.Context, *attempt) (string, error) // begins the load, as soon as the clock runs, and returns the model's folder
	done    func(context.Context) error                     // may be nil
}

// startName is the name of our starts, and how many ranks the server has.
const startName = "headstart node"

func (b *bench) startWays() []start {
	kinds := []kind{mapped, direct}
	if b.Peers.Python != "" {
		kinds = append(kinds, runai)
	}
	var list []start
	for _, k := range kinds {
		for _, readers := range []int{1, 2} {
			s := nodeStart()
			s.by, s.readers = k, readers
			s.name = fmt.Sprintf("%s, %s, tensor parallel %d", startName, k.name, readers)
			list = append(list, s)
		}
	}
	list = append(list, fetchStart())
	if b.Peers.GCSFuse != "" {
		list = append(list, gcsfuseStart())
	}
	return list
}

func nodeStart() start {
	var n *node
	return start{
		name: startName, by: mapped, readers: 1,
		ready: func(ctx context.Context, a *attempt) (err error) { n, err = startNode(ctx, a); return err },
		begin: func(ctx context.Context, _ *attempt) (string, error) { return n.publish(ctx) },
		done:  func(ctx context.Context) error { return n.end(ctx) },
	}
}

// plainStart has a copy before the clock runs: there is nothing to load.
func plainStart() start {
	return start{
		name: plainServer, by: mapped, readers: 1,
		ready: func(ctx context.Context, a *attempt) error { return fetchWay(fetchName).load(ctx, a) },
		begin: func(_ context.Context, a *attempt) (string, error) { return a.dir, nil },
	}
}

func fetchStart() start {
	return start{
		name: "headstart fetch, then start", by: mapped, readers: 1,
		ready: func(context.Context, *attempt) error { return nil },
		begin: func(ctx context.Context, a *attempt) (string, error) { return a.dir, fetchWay(fetchName).load(ctx, a) },
	}
}

func gcsfuseStart() start {
	var dir string
	return start{
		name: bufferedName, by: mapped, readers: 1,
		ready: func(ctx context.Context, a *attempt) (err error) {
			dir, err = mountBucket(ctx, a, bufferedMode(a.Part), mappedAhead)
			return err
		},
		begin: func(context.Context, *attempt) (string, error) { return dir, nil },
	}
}

// starts runs each kind of start in each round.
func (b *bench) starts(ctx context.Context, l *Loads, at string) error {
	transfer := float64(b.manifest.Size()) / float64(l.Link.Total)
	list := b.startWays()
	for _, s := range list {
		walk, err := b.fromMemory(ctx, s)
		if err != nil {
			return fmt.Errorf("%s, from memory: %w", s.name, err)
		}
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

// fromMemory returns how long a start's ranks take, in seconds, when all bytes are plain files in memory.
// No network plays a part in that: it is measured once.
func (b *bench) fromMemory(ctx context.Context, s start) (seconds float64, err error) {
	key := fmt.Sprint(s.by.name, s.readers)
	if seconds, ok := b.walks[key]; ok {
		return seconds, nil
	}
	copied := plainStart()
	copied.by, copied.readers = s.by, s.readers
	err = b.reading(ctx, copied, b.url, 0, func(_, from, to time.Time) { seconds = to.Sub(from).Seconds() })
	if err == nil {
		b.walks[key] = seconds
	}
	return seconds, err
}

// start runs one start and returns how long it took until the last rank had its last weight, in seconds.
func (b *bench) start(ctx context.Context, s start, at string) (took float64, err error) {
	err = b.reading(ctx, s, at, b.HeadStart, func(began, _, to time.Time) { took = to.Sub(began).Seconds() })
	return took, err
}

// reading runs one start and says when the load began, when the first rank began, and when the last one had all.
func (b *bench) reading(ctx context.Context, s start, at string, head time.Duration, say func(began, from, to time.Time)) (err error) {
	if err := b.touch(ctx, 2); err != nil { // the model's, and that of ranks which map nothing
		return err
	}
	a, err := b.attempt(at)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return err
	}
	list, err := a.ranks(ctx, s.by, s.readers)
	if err != nil {
		return err
	}
	if err := s.ready(ctx, a); err != nil {
		return err
	}
	began := time.Now()
	dir, err := s.begin(ctx, a)
	if err != nil {
		return err
	}
	from, to, err := together(ctx, list, dir, head)
	if err != nil {
		return err
	}
	say(began, from, to)
	if s.done != nil {
		err = s.done(ctx)
	}
	return err
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
