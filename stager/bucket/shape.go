package bucket

import (
	"context"
	"io"
	"net/http"
	"time"

	"golang.org/x/time/rate"
)

// Shape is the network that loopback does not have. It wraps a server whose speed a network limits. Of gRPC it
// limits what is sent, for Stream by connection.
type Shape struct {
	Latency time.Duration // before each answer: a round trip; connecting costs none
	Stream  int64         // bytes a second of one request or answer; 0: no limit
	Total   int64         // bytes a second of all together; 0: no limit
}

// slice is how many bytes pass between two looks at the limits.
const slice = 256 << 10

// Handler returns next behind this network.
func (sh Shape) Handler(next http.Handler) http.Handler {
	total := limiter(sh.Total)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &pace{ctx: r.Context(), limits: []*rate.Limiter{total, limiter(sh.Stream)}}
		if p.sleep(sh.Latency) != nil {
			return
		}
		r.Body = &pacedBody{r.Body, p}
		next.ServeHTTP(&pacedWriter{w, p}, r)
	})
}

func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return rate.NewLimiter(rate.Inf, slice)
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), slice)
}

// pace holds one request to the limits.
type pace struct {
	ctx    context.Context
	limits []*rate.Limiter
}

func (p *pace) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// wait pays for n bytes, at most slice.
func (p *pace) wait(n int) error {
	for _, l := range p.limits {
		if err := l.WaitN(p.ctx, n); err != nil {
			return err
		}
	}
	return nil
}

type pacedBody struct {
	io.ReadCloser
	pace *pace
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), slice)])
	if waited := b.pace.wait(n); waited != nil {
		return n, waited
	}
	return n, err
}

type pacedWriter struct {
	http.ResponseWriter
	pace *pace
}

func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *pacedWriter) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		part := b[:min(len(b), slice)]
		if err := w.pace.wait(len(part)); err != nil {
			return written, err
		}
		n, err := w.ResponseWriter.Write(part)
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}

// ReadFrom passes slices of a limited file on as limited files, which net/http gives to sendfile.
func (w *pacedWriter) ReadFrom(r io.Reader) (written int64, err error) {
	src, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	for src.N > 0 {
		part := &io.LimitedReader{R: src.R, N: min(src.N, slice)}
		if err := w.pace.wait(int(part.N)); err != nil {
			return written, err
		}
		n, err := io.Copy(w.ResponseWriter, part)
		written += n
		src.N -= n
		if err != nil || part.N > 0 {
			return written, err
		}
	}
	return written, nil
}
