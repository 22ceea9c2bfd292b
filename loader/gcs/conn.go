package gcs

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// lowWater is how many bytes must have come before a large read is woken, in bytes. Each wake-up costs
// a few microseconds of the processor, whether it brings one packet or many.
const lowWater = 128 << 10

// dial connects like d, over connections that wake large reads less often.
func dial(d *net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return c, nil
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			return c, nil
		}
		return &conn{TCPConn: tcp, raw: raw}, nil
	}
}

// conn is a connection whose large reads wait for lowWater bytes. Whoever reads much knows that it
// comes: a body's reader never asks for more than what is left of the body. An end, or an error, of the connection
// wakes it all the same.
type conn struct {
	*net.TCPConn
	raw syscall.RawConn
	low bool // SO_RCVLOWAT is lowWater
}

func (c *conn) Read(p []byte) (int, error) {
	if low := len(p) >= lowWater; low != c.low {
		c.low = low
		n := 1
		if low {
			n = lowWater
		}
		// Where it cannot be set, reads are woken more often.
		_ = c.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
	}
	return c.TCPConn.Read(p)
}
