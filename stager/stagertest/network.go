package stagertest

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Network is a network in memory. Its connections have buffers, deadlines, ends and resets as TCP's have,
// and block on nothing but each other: inside testing/synctest time passes at once.
type Network struct {
	accept chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// NewNetwork returns a network where every address leads to the same listener.
func NewNetwork() *Network {
	return &Network{accept: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to the listener, whatever the address.
func (n *Network) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	there, back := newPipe(), newPipe()
	select {
	case n.accept <- &Conn{in: there, out: back}:
		return &Conn{in: back, out: there}, nil
	case <-n.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept, Close and Addr make a [net.Listener].
func (n *Network) Accept() (net.Conn, error) {
	select {
	case c := <-n.accept:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close refuses new connections.
func (n *Network) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

// Addr is no real address.
func (n *Network) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// pipe is one direction of a connection.
type pipe struct {
	mu    sync.Mutex
	moved sync.Cond
	data  []byte
	err   error // of a Read that finds no data: io.EOF, ECONNRESET
	gone  error // of a Write
	ends  [2]struct {
		deadline time.Time
		timer    *time.Timer
	}
}

const (
	reading = 0
	writing = 1
	window  = 256 << 10 // bytes that a connection holds
)

func newPipe() *pipe {
	p := &pipe{}
	p.moved.L = &p.mu
	return p
}

func (p *pipe) late(end int) bool {
	d := p.ends[end].deadline
	return !d.IsZero() && !time.Now().Before(d)
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.late(reading):
			return 0, os.ErrDeadlineExceeded
		case len(p.data) > 0:
			n := copy(b, p.data)
			p.data = p.data[n:]
			p.moved.Broadcast()
			return n, nil
		case p.err != nil:
			return 0, p.err
		case len(b) == 0:
			return 0, nil
		}
		p.moved.Wait()
	}
}

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := 0
	for len(b) > 0 {
		switch room := window - len(p.data); {
		case p.late(writing):
			return total, os.ErrDeadlineExceeded
		case p.gone != nil:
			return total, p.gone
		case room > 0:
			n := min(room, len(b))
			p.data = append(p.data, b[:n]...)
			b, total = b[n:], total+n
			p.moved.Broadcast()
		default:
			p.moved.Wait()
		}
	}
	return total, nil
}

// end lets reads end with one error and writes with another; both: at once, whatever is in between.
func (p *pipe) end(read, write error, both bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || both {
		p.err = read
	}
	if p.gone == nil {
		p.gone = write
	}
	if both {
		p.data = nil
	}
	for i := range p.ends {
		if p.ends[i].timer != nil {
			p.ends[i].timer.Stop()
		}
	}
	p.moved.Broadcast()
}

func (p *pipe) setDeadline(end int, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := &p.ends[end]
	if e.timer != nil {
		e.timer.Stop()
	}
	e.deadline = t
	// A timer that is due runs at once, on whoever sets it. Two of them at a time end a process with the
	// race detector in a bubble of testing/synctest, in Go 1.26.8 at least.
	if left := time.Until(t); !t.IsZero() && left > 0 && p.gone == nil {
		e.timer = time.AfterFunc(left, p.moved.Broadcast)
	}
	p.moved.Broadcast()
}

// Conn is one end of a connection.
type Conn struct{ in, out *pipe }

func (c *Conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *Conn) Write(b []byte) (int, error) { return c.out.write(b) }

// Close lets the other end read what was sent, and then an end.
func (c *Conn) Close() error {
	c.out.end(io.EOF, net.ErrClosed, false)
	c.in.end(net.ErrClosed, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}, false)
	return nil
}

// Reset ends the connection as a machine does that knows nothing of it.
func (c *Conn) Reset() {
	err := &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	c.out.end(err, err, true)
	c.in.end(err, err, true)
}

// LocalAddr and the rest make a [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// RemoteAddr is no real address either.
func (c *Conn) RemoteAddr() net.Addr { return c.LocalAddr() }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(reading, t)
	c.out.setDeadline(writing, t)
	return nil
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(reading, t)
	return nil
}

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(writing, t)
	return nil
}
