package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ends is a link in a synctest bubble: what the client and the server hold.
type ends struct {
	client, server net.Conn
	done           chan struct{} // closed when the link has let go of both
}

func join(ctx context.Context, l *Link) ends {
	client, a := net.Pipe()
	b, server := net.Pipe()
	e := ends{client, server, make(chan struct{})}
	go func() {
		defer close(e.done)
		l.Carry(ctx, a, b)
	}()
	return e
}

func (e ends) close() {
	e.client.Close()
	e.server.Close()
	<-e.done
}

// near fails the test when took is not within a hundredth, and a quantum of each of a few streams, of want.
func near(t *testing.T, what string, took, want time.Duration) {
	t.Helper()
	if slack := want/100 + 6*time.Millisecond; took < want-slack || took > want+slack {
		t.Errorf("%s took %v, want %v", what, took, want)
	}
}

func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := join(t.Context(), New(Shape{RoundTrip: 30 * time.Millisecond}))
		defer e.close()
		go io.Copy(e.server, e.server)
		// Connecting is a round trip of its own.
		for _, want := range []time.Duration{60 * time.Millisecond, 30 * time.Millisecond, 30 * time.Millisecond} {
			began := time.Now()
			if _, err := e.client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(e.client, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took != want {
				t.Errorf("a round trip took %v, want %v", took, want)
			}
		}
	})
}

// TestLimits sends so much through several streams, and looks at how long it takes.
func TestLimits(t *testing.T) {
	const mb = 1e6
	for _, x := range []struct {
		name    string
		shape   Shape
		streams int
		want    time.Duration // for 8 MB a stream
	}{
		{"stream", Shape{Stream: 20 * mb}, 3, 400 * time.Millisecond},
		{"stream, far", Shape{Stream: 20 * mb, RoundTrip: 30 * time.Millisecond}, 3, 455 * time.Millisecond},
		{"slow stream, far", Shape{Stream: mb / 4, RoundTrip: time.Second}, 2, 34000 * time.Millisecond},
		{"total", Shape{Total: 400 * mb}, 5, 100 * time.Millisecond},
		// Nothing is sent while they connect: 10 ms of that are saved up.
		{"total, far", Shape{Total: 400 * mb, RoundTrip: 30 * time.Millisecond}, 5, 150 * time.Millisecond},
		{"both, the total counts", Shape{Stream: 100 * mb, Total: 200 * mb}, 4, 160 * time.Millisecond},
		{"both, the stream counts", Shape{Stream: 10 * mb, Total: 200 * mb}, 4, 800 * time.Millisecond},
		{"fast", Shape{Total: 4000 * mb}, 8, 16 * time.Millisecond},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(x.shape)
				began := time.Now()
				var streams sync.WaitGroup
				for range x.streams {
					streams.Go(func() {
						e := join(t.Context(), l)
						defer e.close()
						var ways sync.WaitGroup
						// Both ways at once, each with the limits to itself.
						for _, w := range [][2]net.Conn{{e.client, e.server}, {e.server, e.client}} {
							ways.Go(func() { send(t, w[0], 8*mb) })
							ways.Go(func() { receive(t, w[1], 8*mb) })
						}
						ways.Wait()
					})
				}
				streams.Wait()
				near(t, x.name, time.Since(began), x.want)
			})
		})
	}
}

func send(t *testing.T, to io.Writer, n int) {
	chunk := make([]byte, 100_000)
	for ; n > 0; n -= len(chunk) {
		if _, err := to.Write(chunk[:min(n, len(chunk))]); err != nil {
			t.Error(err)
			return
		}
	}
}

func receive(t *testing.T, from io.Reader, n int64) {
	if _, err := io.CopyN(io.Discard, from, n); err != nil {
		t.Error(err)
	}
}

// TestEnd: whoever hangs up, or a context that ends, ends it all, also while bytes wait for a limit.
func TestEnd(t *testing.T) {
	for _, shape := range []Shape{{Stream: 1000}, {Stream: 1000, RoundTrip: time.Second}} {
		for _, how := range []string{"client", "server", "context"} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				e := join(ctx, New(shape))
				go e.client.Write(make([]byte, 10<<20))
				go io.Copy(io.Discard, e.server)
				time.Sleep(10 * time.Second)
				switch how {
				case "client":
					e.client.Close()
				case "server":
					e.server.Close()
				case "context":
					cancel()
				}
				time.Sleep(time.Hour) // of waiting for the limit
				select {
				case <-e.done:
				default:
					t.Errorf("%+v: it goes on after the %s has ended", shape, how)
				}
				e.close()
			})
		}
	}
}

// TestHTTP has a real client and server talk over TCP through it, unchanged.
func TestHTTP(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cut" {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("short"))
			panic(http.ErrAbortHandler)
		}
		io.Copy(w, r.Body)
	}))
	defer server.Close()
	for _, shape := range []Shape{{}, {Total: 1 << 30}, {RoundTrip: time.Millisecond, Stream: 1 << 30}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- New(shape).Serve(ctx, l, dialer(server.Listener.Addr().String())) }()
		transport := &http.Transport{}
		client := &http.Client{Transport: transport}
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				for range 3 {
					got, err := post(client, "http://"+l.Addr().String(), body)
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%+v: %d of %d bytes, %v", shape, len(got), len(body), err)
					}
				}
			})
		}
		clients.Wait()
		if _, err := post(client, "http://"+l.Addr().String()+"/cut", nil); err == nil {
			t.Errorf("%+v: an answer that was cut looks complete", shape)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
	}
}

func dialer(to string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", to) }
}

func post(c *http.Client, to string, body []byte) ([]byte, error) {
	res, err := c.Post(to, "text/plain", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

// TestNobodyThere: a client sees a reset when there is no server behind the link.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() {
		served <- New(Shape{}).Serve(ctx, l, func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED })
	}()
	_, err = http.Get("http://" + l.Addr().String())
	if err == nil || !(errors.Is(err, syscall.ECONNRESET) || strings.Contains(err.Error(), "EOF")) {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
