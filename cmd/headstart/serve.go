package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// server is an HTTP server with the listener it serves.
type server struct {
	http.Server
	l net.Listener
}

// listen opens addr ("127.0.0.1:0" for a free port); nothing is served before Serve.
func listen(ctx context.Context, addr string, h http.Handler) (*server, error) {
	return listenAs(ctx, "--listen", addr, h)
}

// listenAs is listen for an address that another flag gave.
func listenAs(ctx context.Context, flag, addr string, h http.Handler) (*server, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, usageError{fmt.Errorf("%s %s: want HOST:PORT, for example 127.0.0.1:8080", flag, addr)}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, inTheWay{fmt.Errorf("%s is in use: stop who listens there, or give another %s (port 0 takes a free one)", addr, flag)}
		}
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return &server{http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second}, l}, nil
}

func (s *server) URL() string { return "http://" + s.l.Addr().String() }

// serve serves all of them until ctx ends or one fails; then it ends what is still being answered.
func serve(ctx context.Context, servers ...*server) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		g.Go(func() error {
			if err := s.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving %s: %w", s.URL(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return s.Close()
		})
	}
	return g.Wait()
}
