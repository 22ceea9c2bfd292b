package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/loader/control"
)

// byNode brings the model to a node and starts the reader at the moment the load begins.
func (d *demo) byNode(ctx context.Context) (err error) {
	n, err := d.startNode(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.end(err == nil)) }()
	if err := d.touch(ctx); err != nil {
		return err
	}
	target := d.place.Path("first")
	if err := d.held.load.Release(); err != nil {
		return err
	}
	begin := d.now()
	if err := n.publish(ctx, target); err != nil {
		return err
	}
	var arrived float64
	err = n.during(ctx,
		func(ctx context.Context) error {
			err := d.command(ctx, nil, "wait", d.repo.Name(), "--socket", n.socket)
			arrived = d.now()
			return err
		},
		func(ctx context.Context) error { return d.readFirst(ctx, target) })
	if err != nil {
		return err
	}
	if err := n.loaded(ctx, begin, arrived); err != nil {
		return err
	}
	// The mount that vLLM has read is what to compare; another reader comes as another pod would.
	if d.cfg.VLLM == nil {
		target = d.place.Path("second")
		if err := n.publish(ctx, target); err != nil {
			return err
		}
	}
	return n.during(ctx, func(ctx context.Context) error { return d.readSecond(ctx, target) })
}

// during does all of these at once. When one fails, or the node ends, so do the others.
func (n *node) during(ctx context.Context, do ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(n.Alive, func() { cancel(n.died()) })
	defer stop()
	g, working := errgroup.WithContext(ctx)
	for _, f := range do {
		g.Go(func() error { return f(working) })
	}
	err := g.Wait()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// node is the daemon and its control socket.
type node struct {
	*child.Daemon
	demo    *demo
	socket  string
	client  *control.Client
	log     *os.File
	targets []string
}

func (d *demo) startNode(ctx context.Context) (*node, error) {
	log, err := os.Create(d.place.Path(nodeLog))
	if err != nil {
		return nil, err
	}
	n := &node{demo: d, socket: d.place.Path(socketFile), log: log}
	n.Daemon, err = d.start(log, append([]string{"node", "--cache", d.place.cache, "--socket", n.socket, "--listen", "127.0.0.1:0"}, d.place.media...)...)
	if err != nil {
		log.Close()
		return nil, err
	}
	n.client = control.Dial(n.socket)
	if err := n.ready(ctx); err != nil {
		return nil, errors.Join(err, n.end(false))
	}
	return n, nil
}

// ready waits until the node answers.
func (n *node) ready(ctx context.Context) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		if s, err := n.client.Status(ctx); err == nil {
			n.demo.found(s.Media)
			return nil
		}
		select {
		case <-n.Alive.Done():
			return n.died()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		}
	}
}

// died says why the node ended, with the last line of its log.
func (n *node) died() error {
	var said child.Tail
	if b, err := os.ReadFile(n.log.Name()); err == nil {
		_, _ = said.Write(b)
	}
	return child.Failed("headstart node", n.Err(), &said)
}

func (n *node) publish(ctx context.Context, target string) error {
	n.targets = append(n.targets, target)
	return n.demo.command(ctx, nil, "publish", n.demo.repo.Name(), target, "--socket", n.socket)
}

// loaded notes what the node says of its load.
func (n *node) loaded(ctx context.Context, begin, arrived float64) error {
	s, err := n.client.Status(ctx)
	if err != nil {
		return err
	}
	if len(s.Entries) != 1 {
		return fmt.Errorf("the node has %d models, want one", len(s.Entries))
	}
	p, r := s.Entries[0].Progress, &n.demo.result
	r.First, r.Load, r.LoadRate = round(p.First), round(p.Elapsed), rate(p.Fetched, p.Elapsed)
	begin = max(begin, arrived-p.Elapsed)
	n.demo.span("load", begin, arrived)
	n.demo.span("first chunk", begin, begin+p.First)
	return nil
}

// end takes away what was published, in the node's own way if all went well, and stops the node.
func (n *node) end(well bool) error {
	var err error
	ctx, cancel := context.WithTimeout(context.Background(), child.Stopping)
	defer cancel()
	for _, target := range n.targets {
		if e := n.client.Unpublish(ctx, target); e != nil && well {
			err = errors.Join(err, e)
		}
	}
	n.client.Close()
	n.End()
	return errors.Join(err, n.log.Close())
}

// readFirst runs the reader that begins with the load.
func (d *demo) readFirst(ctx context.Context, dir string) (err error) {
	if d.cfg.VLLM != nil {
		return d.serveStreamed(ctx, dir)
	}
	d.cold, err = d.read(ctx, "reader", dir, "--head-start", d.cfg.HeadStart.String())
	return err
}

// readSecond runs the reader that finds everything in place.
func (d *demo) readSecond(ctx context.Context, dir string) error {
	warm, err := d.read(ctx, "second reader", dir)
	if err != nil {
		return err
	}
	d.result.readers(d.cold, warm)
	d.result.Verified = true // each of them, or its command would have failed
	return nil
}

// read runs a reader process on dir, and compares every byte with the Hub's sums.
func (d *demo) read(ctx context.Context, who, dir string, more ...string) (replay.Result, error) {
	var r replay.Result
	args := append([]string{"replay", dir, "--expect", d.place.Path(sumsFile), "--json"}, more...)
	if err := d.command(ctx, &r, args...); err != nil {
		return r, err
	}
	d.phases(who, r)
	if !r.Verified {
		return r, fmt.Errorf("the %s compared nothing", who)
	}
	return r, nil
}
