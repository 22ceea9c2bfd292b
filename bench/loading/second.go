package loading

import (
	"context"
	"errors"
	"time"

	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/bench/score"
)

// walks is how often a second pod comes in each round: what it takes is short.
const walks = 5

// warm has a model on a node, and the same files as plain files beside it.
func (b *bench) warm(ctx context.Context) (err error) {
	if err := b.touch(ctx, 2); err != nil {
		return err
	}
	a, err := b.attempt(b.url)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return err
	}
	n, err := startNode(ctx, a)
	if err != nil {
		return err
	}
	if _, err := n.publish(ctx); err != nil {
		return err
	}
	if err := n.Wait(ctx, n.ref(), nil); err != nil {
		return err
	}
	native, err := folder(a.dir, "native")
	if err != nil {
		return err
	}
	if err := a.tool(ctx, nil, a.Self, "fetch", a.model().String(), native, "--json"); err != nil {
		return err
	}
	var publish, mount, plain []float64
	for i := range b.Rounds * walks {
		began := time.Now()
		target, err := n.publish(ctx)
		if err != nil {
			return err
		}
		publish = append(publish, time.Since(began).Seconds())
		m, p, err := a.both(ctx, target, native, i%2 == 1)
		if err != nil {
			return err
		}
		mount, plain = append(mount, m), append(plain, p)
		b.say("%s: published in %.1f ms, read by mmap at %s/s, plain files at %s/s", Warm, 1e3*publish[len(publish)-1], score.Bytes(int64(m)), score.Bytes(int64(p)))
	}
	s := &Second{Rounds: len(publish), Publish: score.Of(publish), Mount: score.Of(mount), Native: score.Of(plain)}
	s.Goals = secondGoals(s)
	b.result.Second = s
	return n.end(ctx)
}

// both walks through the mount and through the plain files, in this order or the other one.
func (a *attempt) both(ctx context.Context, mount, plain string, turned bool) (m, p float64, err error) {
	if turned {
		p, m, err = a.both(ctx, plain, mount, false)
		return m, p, err
	}
	if m, err = a.walk(ctx, mount); err == nil {
		p, err = a.walk(ctx, plain)
	}
	return m, p, err
}

// walk reads a model as vLLM does, through new mappings, and returns the rate of its weights.
func (a *attempt) walk(ctx context.Context, dir string) (float64, error) {
	var r replay.Result
	err := a.tool(ctx, &r, a.Self, "replay", dir, "--json")
	return r.Rate, err
}
