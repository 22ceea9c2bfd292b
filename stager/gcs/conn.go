package gcs

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"
)

// Dial makes a connection, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// dial makes connections that end when nothing moves on them for so long: neither a byte that is sent
// nor one that comes. The client knows no such limit, and a request that hangs would hang for ever.
func dial(next Dial, stall time.Duration) Dial {
	if next == nil {
		next = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &conn{c, stall}, nil
	}
}

type conn struct {
	net.Conn
	stall time.Duration
}

// Write counts as movement for both directions: the answer is awaited from its last byte on.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// ReadFrom sends a body that lies in memory from where it lies: net/http would copy it first, 32 KiB at
// a time.
func (c *conn) ReadFrom(r io.Reader) (sent int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	b, ok := limited.R.(*body)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	const block = 256 << 10 // what has to move before the connection counts as stalled
	for limited.N > 0 {
		n, err := b.pass(int(min(limited.N, block)), c.Write)
		sent += int64(n)
		limited.N -= int64(n)
		if err == io.EOF {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.SetReadDeadline(time.Now().Add(c.stall)) // a closed connection says so at the next Read
	}
	return n, err
}

// bounded is a transport that bounds in bytes what an answer that is no success may cost: the client reads
// it whole.
type bounded struct{ next http.RoundTripper }

const maxErrorBody = 64 << 10

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= 300 {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxErrorBody), answer.Body}
	}
	return answer, nil
}
