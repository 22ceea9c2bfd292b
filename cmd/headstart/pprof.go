package main

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
)

// listenProfiles opens addr for net/http/pprof, and nothing else is served there. Profiles show what is
// in memory: an address without a host is of this machine only, and other addresses have to be asked for
// by name. For "" there is no server.
func listenProfiles(ctx context.Context, addr string) ([]*server, error) {
	if addr == "" {
		return nil, nil
	}
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "" {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s, err := listenAs(ctx, "--pprof", addr, mux)
	if err != nil {
		return nil, err
	}
	return []*server{s}, nil
}
