package bucket

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// resetConnection ends the connection with an RST.
func resetConnection(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// pause waits for the fault's time, or until the client is gone.
func (f *fault) pause(ctx context.Context) error {
	if f.stall == forever {
		<-ctx.Done()
		return ctx.Err()
	}
	timer := time.NewTimer(f.stall)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// faultBody is an upload's body that fails or stalls at an offset.
type faultBody struct {
	io.ReadCloser
	fault fault
	left  int64 // bytes before the fault
	ctx   context.Context
}

func (b *faultBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return b.ReadCloser.Read(p)
	}
	if b.left == 0 {
		b.left = -1
		if b.fault.status > 0 {
			return 0, b.fault.answer()
		}
		if err := b.fault.pause(b.ctx); err != nil {
			return 0, err
		}
		return b.ReadCloser.Read(p)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// faultWriter is an answer whose body goes wrong. It has no ReadFrom: the bytes pass through here.
type faultWriter struct {
	http.ResponseWriter
	fault  fault
	left   int64 // bytes before the fault; -1: there is none at an offset
	broken bool
	ctx    context.Context
}

func (w *faultWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultWriter) Write(p []byte) (int, error) {
	if w.fault.corrupt && len(p) > 0 {
		w.fault.corrupt = false
		p = slices.Clone(p)
		p[0] ^= 'A' ^ 'B'
	}
	if w.left < 0 || int64(len(p)) <= w.left && w.left > 0 {
		n, err := w.ResponseWriter.Write(p)
		if w.left > 0 {
			w.left = max(w.left-int64(n), 0)
		}
		return n, err
	}
	n, err := w.ResponseWriter.Write(p[:w.left])
	if err != nil {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	w.left = -1
	if !w.fault.stalls {
		w.broken = true
		return n, http.ErrAbortHandler
	}
	if err := w.fault.pause(w.ctx); err != nil {
		w.broken = true
		return n, err
	}
	m, err := w.ResponseWriter.Write(p[n:])
	return n + m, err
}
