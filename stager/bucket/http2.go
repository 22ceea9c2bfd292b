package bucket

import (
	"io"
	"net"
	"net/http"
	"sync"

	"google.golang.org/grpc"
)

// rpc is the gRPC server, which is started for the first client that speaks HTTP/2.
//
// Clients of the other APIs speak HTTP/1.1, as the service's do over plain connections, so one port is enough:
// net/http hands the preface of HTTP/2 to the handler as a request, and the connection goes on to grpc's own
// server, which is several times as fast as grpc's handler behind net/http.
type rpc struct {
	mu     sync.Mutex
	closed bool
	server *grpc.Server
	conns  *connections
	ended  chan struct{} // Serve has returned
}

// prefaceRead is what net/http has read of the preface when it calls a handler.
const prefaceRead = "PRI * HTTP/2.0\r\n\r\n"

func isPreface(r *http.Request) bool {
	return r.Method == "PRI" && r.ProtoMajor == 2 && r.URL.Path == "*"
}

// serveHTTP2 gives the connection of a request, which is the preface, to the gRPC server, and returns when it
// is closed.
func (s *Server) serveHTTP2(w http.ResponseWriter) {
	to := s.startRPC()
	if to == nil {
		panic(http.ErrAbortHandler)
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	head := make([]byte, len(prefaceRead)+buffered.Reader.Buffered())
	n := copy(head, prefaceRead)
	if _, err := io.ReadFull(buffered, head[n:]); err != nil {
		conn.Close()
		return
	}
	c := &http2Conn{Conn: conn, head: head, closed: make(chan struct{})}
	if p, ok := w.(*pacedWriter); ok {
		c.pace = p.pace
	}
	select {
	case to.offered <- c:
		<-c.closed
	case <-to.closed:
		conn.Close()
	}
}

// startRPC returns where connections go; nil when the server is closed.
func (s *Server) startRPC() *connections {
	s.rpc.mu.Lock()
	defer s.rpc.mu.Unlock()
	if s.rpc.closed {
		return nil
	}
	if s.rpc.server == nil {
		s.rpc.server = s.newGRPC()
		s.rpc.conns = &connections{offered: make(chan net.Conn), closed: make(chan struct{})}
		s.rpc.ended = make(chan struct{})
		go func() {
			defer close(s.rpc.ended)
			// It ends without an error when it is stopped, and this listener has no other.
			_ = s.rpc.server.Serve(s.rpc.conns)
		}()
	}
	return s.rpc.conns
}

// stopRPC ends all calls and connections.
func (s *Server) stopRPC() {
	s.rpc.mu.Lock()
	s.rpc.closed = true
	server := s.rpc.server
	s.rpc.mu.Unlock()
	if server != nil {
		server.Stop()
		<-s.rpc.ended
	}
}

// connections is a listener whose connections are given to it.
type connections struct {
	offered chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *connections) Accept() (net.Conn, error) {
	select {
	case c := <-l.offered:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *connections) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *connections) Addr() net.Addr { return &net.TCPAddr{} }

// http2Conn is a connection whose first bytes have been read already.
type http2Conn struct {
	net.Conn
	head   []byte
	pace   *pace // nil for none
	once   sync.Once
	closed chan struct{}
}

func (c *http2Conn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *http2Conn) Write(p []byte) (written int, err error) {
	if c.pace == nil {
		return c.Conn.Write(p)
	}
	for len(p) > 0 {
		part := p[:min(len(p), slice)]
		if err := c.pace.wait(len(part)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(part)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

func (c *http2Conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
