package loading

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/score"
	"github.com/headstart-serving/headstart/bench/server"
)

// cold compares all ways over loopback.
func (b *bench) cold(ctx context.Context) error {
	l := Loads{Name: Cold, Title: "from the bucket to readable bytes, loopback, nothing between"}
	err := b.take(ctx, &l, slices.Concat(b.ours(), b.others), b.url)
	if err == nil {
		l.Goals = coldGoals(&l)
	}
	b.result.Loads = append(b.result.Loads, l)
	return err
}

// take runs each way in each round, another one first each time.
func (b *bench) take(ctx context.Context, l *Loads, ways []way, at string) error {
	l.Rounds = b.Rounds
	defer func() {
		for i := range l.Ways {
			l.Ways[i].sum()
		}
	}()
	for _, w := range ways {
		l.Ways = append(l.Ways, Way{Name: w.name, Checks: w.checks})
	}
	for round := range b.Rounds {
		for i := range ways {
			k := (round + i) % len(ways)
			s, err := b.measure(ctx, ways[k], at)
			if err != nil {
				return fmt.Errorf("%s: %w", ways[k].name, err)
			}
			b.say("%s, round %d of %d: %s: %s", l.Name, round+1, b.Rounds, ways[k].name, s.line())
			l.Ways[k].Runs = append(l.Ways[k].Runs, s)
		}
	}
	return nil
}

const (
	most    = 100 // Gbit/s: the fastest network of the set links
	share   = 6   // … is so small a part of what this machine receives: bucket, relay and readers run on it, too, and it is to be the network that limits
	streams = 64  // of the limit's loop, where each stream has a limit
)

// links compares over networks. They are scaled by what this machine can receive at all through a relay with the
// same round trip.
func (b *bench) links(ctx context.Context) error {
	free := Loads{Name: Links, Title: "a network without a limit"}
	b.say("what this machine receives through a relay")
	err := b.across(ctx, link.Shape{RoundTrip: b.RoundTrip}, func(at string) error {
		return b.take(ctx, &free, []way{b.limitWay(streams)}, at)
	})
	if err != nil {
		return err
	}
	for _, gbit := range b.Gbits {
		if err := b.link(ctx, gbit, free.Ways[0].Rate.Median/share); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) link(ctx context.Context, gbit int, limit float64) error {
	shape := link.Shape{RoundTrip: b.RoundTrip, Stream: int64(limit * b.Stream / most), Total: int64(limit * float64(gbit) / most)}
	l := Loads{
		Name: fmt.Sprintf("%d Gbit/s", gbit), Link: &shape,
		Title: fmt.Sprintf("scaled to %s/s, %s/s for a single stream, a round trip of %v", score.Bytes(shape.Total), score.Bytes(shape.Stream), shape.RoundTrip),
	}
	err := b.across(ctx, shape, func(at string) error {
		if err := b.take(ctx, &l, b.acrossWays(), at); err != nil {
			return err
		}
		return b.starts(ctx, &l, at)
	})
	if err == nil {
		l.Goals = linkGoals(&l)
	}
	b.result.Loads = append(b.result.Loads, l)
	return err
}

// acrossWays are the ways that use more than one stream: one stream is slow by its limit alone.
func (b *bench) acrossWays() []way {
	ways := []way{b.limitWay(streams), nodeWay()}
	for _, w := range b.others {
		if slices.Contains([]string{rcloneNoName, managerName, bufferedName, runaiName}, w.name) {
			ways = append(ways, w)
		}
	}
	return ways
}

// across puts a network before the bucket, at another address of this machine, for as long as do takes.
func (b *bench) across(ctx context.Context, shape link.Shape, do func(at string) error) error {
	const far = "127.0.0.2"
	u, err := url.Parse(b.url)
	if err != nil {
		return err
	}
	l, err := server.Start(ctx, b.Self, b.Environ, 1, "bench", "link", "--at", far, "--to", u.Host, "--round-trip", shape.RoundTrip.String(),
		"--stream", strconv.FormatInt(shape.Stream, 10), "--total", strconv.FormatInt(shape.Total, 10))
	if err != nil {
		return err
	}
	defer l.End()
	u.Host = net.JoinHostPort(far, u.Port())
	return do(u.String())
}
