package link

import (
	"context"
	"errors"
	"io"
	"time"
)

// pass moves bytes without delay, a quantum at a time: between TCP connections the kernel does it
// (splice), and no byte comes here. What has passed is paid for afterwards.
func (l *Link) pass(ctx context.Context, w *way) error {
	if err := until(ctx, w.connected); err != nil {
		return err
	}
	for {
		n, err := io.CopyN(w.to, w.from, l.shape.quantum())
		if n > 0 {
			if paid := w.pay(ctx, int(n)); paid != nil {
				return paid
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// flight is how many packets are on their way at most: 8 MiB, more than a stream at its limit has there.
const flight = 64

// packet is bytes on their way.
type packet struct {
	buffer *[]byte
	n      int
	due    time.Time // at the other end
}

// delay moves bytes so that each arrives a round trip after it was let onto the link.
func (l *Link) delay(ctx context.Context, w *way) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	queue := make(chan packet, flight)
	sent := make(chan error, 1)
	go func() {
		sent <- l.send(ctx, w, queue)
		cancel()
	}()
	err := l.receive(ctx, w, queue)
	close(queue)
	if failed := <-sent; failed != nil {
		return failed
	}
	return err
}

func (l *Link) receive(ctx context.Context, w *way, queue chan<- packet) error {
	if err := until(ctx, w.connected); err != nil {
		return err
	}
	for {
		buffer := l.buffers.Get().(*[]byte)
		n, err := w.from.Read(*buffer)
		if n > 0 {
			if paid := w.pay(ctx, n); paid != nil {
				return paid
			}
			select {
			case queue <- packet{buffer, n, time.Now().Add(l.shape.RoundTrip)}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (l *Link) send(ctx context.Context, w *way, queue <-chan packet) error {
	for p := range queue {
		if err := until(ctx, p.due); err != nil {
			return err
		}
		if _, err := w.to.Write((*p.buffer)[:p.n]); err != nil {
			return err
		}
		l.buffers.Put(p.buffer)
	}
	return nil
}

func until(ctx context.Context, t time.Time) error {
	left := time.Until(t)
	if left <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
