// Package link is the network that loopback does not have: a relay of TCP connections with a round
// trip, a limit of each stream, and a limit of all together, each way for itself.
//
// What it does not imitate: loss, slow start, and queues that grow; a stream is at its limit from its
// first byte. And it takes processor time, which a network does not.
package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Shape is what a link is like. The zero value is loopback with a relay in it.
type Shape struct {
	RoundTrip time.Duration `json:"round_trip_ns"` // connecting takes one, too
	Stream    int64         `json:"stream"`        // bytes a second of one connection one way; 0: no limit
	Total     int64         `json:"total"`         // bytes a second of all connections one way; 0: no limit
}

// Link is the relay. Its limits hold for everything that it carries.
type Link struct {
	shape    Shape
	up, down *rate.Limiter // of all, towards the server and back
	buffers  sync.Pool     // *[]byte of quantum bytes
}

// New returns a link of this shape.
func New(s Shape) *Link {
	l := &Link{shape: s, up: s.limiter(s.Total), down: s.limiter(s.Total)}
	n := s.quantum()
	l.buffers.New = func() any { b := make([]byte, n); return &b }
	return l
}

// The bounds of what passes between two looks at the limits, in bytes: small enough to be smooth, large
// enough that looking costs little.
const (
	leastQuantum = 4 << 10
	mostQuantum  = 128 << 10
)

// quantum is 20 ms at the lowest limit, within bounds.
func (s Shape) quantum() int64 {
	n := int64(mostQuantum)
	for _, limit := range []int64{s.Stream, s.Total} {
		if limit > 0 {
			n = min(n, limit/50)
		}
	}
	return max(n, leastQuantum)
}

// limiter lets a sleeper who wakes up to 10 ms late catch up. It has nothing saved up at the start.
func (s Shape) limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return rate.NewLimiter(rate.Inf, mostQuantum)
	}
	burst := int(max(s.quantum(), bytesPerSecond/100))
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
	l.AllowN(time.Now(), burst)
	return l
}

// Serve accepts connections and carries each to where dial leads, until ctx ends or accepting fails.
// Then it closes them and returns when all have ended; the error is nil if ctx was why.
func (l *Link) Serve(ctx context.Context, from net.Listener, dial func(context.Context) (net.Conn, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { from.Close() })()
	var carrying sync.WaitGroup
	defer carrying.Wait()
	defer cancel()
	for {
		client, err := from.Accept()
		if ctx.Err() != nil {
			if err == nil {
				client.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting connections: %w", err)
		}
		carrying.Go(func() {
			server, err := dial(ctx)
			if err != nil {
				abort(client)
				return
			}
			l.Carry(ctx, client, server)
		})
	}
}

// Carry passes on what a client and a server say to each other until both have said all, one fails, or
// ctx ends, and closes them. It begins a round trip late, as a connection over a network does. A round trip is
// spent on the way to the server: who asks and is answered sees no difference, and the way back, which is that of a
// model to a node, is the kernel's alone.
func (l *Link) Carry(ctx context.Context, client, server net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer client.Close()
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { abort(client); abort(server) })
	defer stop()
	connected := time.Now().Add(l.shape.RoundTrip)
	var ways sync.WaitGroup
	there := l.delay
	if l.shape.RoundTrip == 0 {
		there = l.pass
	}
	for _, w := range []way{
		{server, client, l.up, l.shape.limiter(l.shape.Stream), connected, there},
		{client, server, l.down, l.shape.limiter(l.shape.Stream), connected, l.pass},
	} {
		ways.Go(func() {
			if err := w.carry(ctx); err != nil {
				cancel()
			}
		})
	}
	ways.Wait()
}

// way is one direction of a connection.
type way struct {
	to, from  net.Conn
	all, one  *rate.Limiter
	connected time.Time // nothing leaves before
	move      func(context.Context, *way) error
}

// pay waits until n bytes may pass.
func (w *way) pay(ctx context.Context, n int) error {
	return errors.Join(w.one.WaitN(ctx, n), w.all.WaitN(ctx, n))
}

func (w *way) carry(ctx context.Context) error {
	if err := w.move(ctx, w); err != nil {
		return err
	}
	if half, ok := w.to.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return w.to.Close()
}

// abort closes a connection so that the other end sees an error and not an end.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}
