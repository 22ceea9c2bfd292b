package staging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/link"
)

const (
	bucketName = "models"

	// The servers listen near; where there is a network between, it listens far, on the same ports. Both are this machine.
	near = "127.0.0.1"
	far  = "127.0.0.2"
)

// starting bounds how long a server may take until it says where it is.
const starting = 30 * time.Second

// server is a process that serves.
type server struct {
	*child.Daemon
	name  string
	lines []string // that it said on stdout when it was ready
}

// serve starts a headstart command that says n lines on stdout when it is ready.
func (b *bench) serve(ctx context.Context, n int, args ...string) (*server, error) {
	said, ready := new(child.Tail), &lines{want: n, done: make(chan []string, 1)}
	d, err := child.Start(said, func(ctx context.Context) *exec.Cmd {
		cmd := child.Command(ctx, b.Self, args...)
		cmd.Env = child.Environ(b.Environ, nil)
		cmd.Stdout = ready
		return cmd
	})
	if err != nil {
		return nil, err
	}
	s := &server{Daemon: d, name: args[0]}
	late := time.NewTimer(starting)
	defer late.Stop()
	select {
	case s.lines = <-ready.done:
		return s, nil
	case <-d.Alive.Done():
		return nil, child.Failed("headstart "+s.name, d.Err(), said)
	case <-late.C:
		err = fmt.Errorf("headstart %s is not ready after %v", s.name, starting)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	d.End()
	return nil, err
}

// lines hands over the first lines that are written to it, once, and drops the rest.
type lines struct {
	want int
	part []byte
	got  []string
	done chan []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.part = append(l.part, b...)
	for len(l.got) < l.want {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.got, l.part = append(l.got, string(line)), rest
		if len(l.got) == l.want {
			l.done <- l.got
		}
	}
	l.part = nil
	return len(b), nil
}

var _ io.Writer = (*lines)(nil)

// site is what one run finds: an empty bucket, an empty home, and perhaps a network between.
type site struct {
	home, bucketDir   string
	hubURL, bucketURL string
	servers           []*server // with the Hub's
	own               []*server // that end with the run
}

// site makes ready what a run needs. It is closed also after an error.
func (b *bench) site(ctx context.Context, shape *link.Shape, discard bool) (*site, error) {
	s := &site{home: b.disk.Path("home"), bucketDir: b.memory.Path("bucket")}
	if err := os.Mkdir(s.home, 0o700); err != nil {
		return s, err
	}
	args := []string{"bucket", "--dir", s.bucketDir, "--create", bucketName, "--omit-md5", "--listen", near + ":0"}
	if discard {
		args = append(args, "--discard")
	}
	bucket, err := b.serve(ctx, 1, args...)
	if err != nil {
		return s, err
	}
	s.own = append(s.own, bucket)
	s.hubURL, s.bucketURL = b.hub.lines[0], bucket.lines[0]
	if shape != nil {
		err = b.between(ctx, s, *shape)
	}
	s.servers = append([]*server{b.hub}, s.own...)
	return s, err
}

// between puts a network before the servers: each port of theirs at another address of this machine. The
// Hub leads its clients to its CDN, and the bucket to its upload sessions, by the address that they came to.
func (b *bench) between(ctx context.Context, s *site, shape link.Shape) error {
	args := []string{
		"bench", "link", "--at", far, "--round-trip", shape.RoundTrip.String(),
		"--stream", strconv.FormatInt(shape.Stream, 10), "--total", strconv.FormatInt(shape.Total, 10),
	}
	for _, at := range append([]string{s.bucketURL}, b.hub.lines...) {
		u, err := url.Parse(at)
		if err != nil {
			return err
		}
		args = append(args, "--to", u.Host)
	}
	l, err := b.serve(ctx, 1, args...)
	if err != nil {
		return err
	}
	s.own = append(s.own, l)
	for _, at := range []*string{&s.hubURL, &s.bucketURL} {
		u, err := url.Parse(*at)
		if err != nil {
			return err
		}
		u.Host = net.JoinHostPort(far, u.Port())
		*at = u.String()
	}
	return nil
}

// close ends the servers and empties home and bucket.
func (s *site) close() error {
	for _, p := range s.own {
		p.End()
	}
	for _, dir := range []string{s.home, s.bucketDir} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("emptying the place of a run: %w", err)
		}
	}
	return nil
}
