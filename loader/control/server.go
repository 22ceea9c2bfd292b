package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/manifest"
)

// Server answers for a node.
type Server struct {
	node Node
	log  *slog.Logger
	mux  *http.ServeMux
}

// New returns a server for a node.
func New(node Node, log *slog.Logger) *Server {
	s := &Server{node: node, log: log, mux: http.NewServeMux()}
	s.mux.HandleFunc("POST /v1/publish", s.publish)
	s.mux.HandleFunc("POST /v1/unpublish", s.unpublish)
	s.mux.HandleFunc("POST /v1/wait", s.wait)
	s.mux.HandleFunc("POST /v1/verify", s.verify)
	s.mux.HandleFunc("GET /v1/order", s.order)
	s.mux.HandleFunc("GET /v1/status", s.status)
	return s
}

// Run answers on l, which it closes, until ctx ends. Requests that are being answered then are
// ended too.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("the control socket: %w", err)
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) publish(w http.ResponseWriter, r *http.Request) {
	var in publishRequest
	ref, err := reference(w, r, &in, &in.Model)
	if err != nil {
		s.fail(w, err)
		return
	}
	layout, err := loader.ParseLayout(in.Layout)
	if err != nil {
		s.fail(w, err)
		return
	}
	p, err := s.node.PublishAs(r.Context(), ref, in.Target, layout)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, p)
}

func (s *Server) unpublish(w http.ResponseWriter, r *http.Request) {
	var in unpublishRequest
	err := read(w, r, &in)
	if err == nil {
		err = s.node.Unpublish(r.Context(), in.Target)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, struct{}{})
}

func (s *Server) order(w http.ResponseWriter, r *http.Request) {
	ref, err := manifest.ParseReference(r.URL.Query().Get("model"))
	var data []byte
	if err == nil {
		data, err = s.node.Order(r.Context(), ref)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, json.RawMessage(data))
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, s.node.Status())
}

func (s *Server) wait(w http.ResponseWriter, r *http.Request) {
	s.lines(w, r, func(ctx context.Context, ref manifest.Reference, say func(line)) error {
		return s.node.Wait(ctx, ref, func(p loader.Progress) { say(line{Progress: &p}) })
	})
}

func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	s.lines(w, r, func(ctx context.Context, ref manifest.Reference, say func(line)) error {
		said := 0 // a model may have more wrong chunks than a line should
		return s.node.Verify(ctx, ref, func(c loader.Check) {
			c.Wrong, said = c.Wrong[said:], len(c.Wrong)
			say(line{Checked: &c})
		})
	})
}

// lines answers a line for each step. The request's context ends when the client goes away, and with
// it what was asked for here and nothing else.
func (s *Server) lines(w http.ResponseWriter, r *http.Request, do func(ctx context.Context, ref manifest.Reference, say func(line)) error) {
	var in modelRequest
	ref, err := reference(w, r, &in, &in.Model)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines, out := json.NewEncoder(w), http.NewResponseController(w)
	say := func(l line) {
		if err := errors.Join(lines.Encode(l), out.Flush()); err != nil {
			s.log.Debug("a client that waits has gone", "err", err)
		}
	}
	if err := do(r.Context(), ref, say); err != nil {
		wire, _ := encode(err)
		say(line{Error: wire})
		return
	}
	say(line{Done: true})
}

// reference reads a request and the model that it names.
func reference(w http.ResponseWriter, r *http.Request, in any, model *string) (manifest.Reference, error) {
	if err := read(w, r, in); err != nil {
		return manifest.Reference{}, err
	}
	return manifest.ParseReference(*model)
}

func read(w http.ResponseWriter, r *http.Request, in any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		return &nodeError{fmt.Sprintf("the request is not understood: %v", err), fs.ErrInvalid}
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	wire, status := encode(err)
	s.log.Info("a request failed", "kind", wire.Kind, "err", err)
	s.answer(w, status, errorAnswer{wire})
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("a client has gone", "err", err)
	}
}
