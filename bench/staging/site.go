package staging

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/server"
)

const (
	bucketName = "models"

	// The servers listen near; where there is a network between, it listens far, on the same ports. Both are this machine.
	near = "127.0.0.1"
	far  = "127.0.0.2"
)

// site is what one run finds: an empty bucket, an empty home, and perhaps a network between.
type site struct {
	home, bucketDir   string
	hubURL, bucketURL string
	servers           []*server.Server // with the Hub's
	own               []*server.Server // that end with the run
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
	bucket, err := server.Start(ctx, b.Self, b.Environ, 1, args...)
	if err != nil {
		return s, err
	}
	s.own = append(s.own, bucket)
	s.hubURL, s.bucketURL = b.hub.Lines[0], bucket.Lines[0]
	if shape != nil {
		err = b.between(ctx, s, *shape)
	}
	s.servers = append([]*server.Server{b.hub}, s.own...)
	return s, err
}

// between puts a network before the servers: each port of theirs at another address of this machine. The
// Hub leads its clients to its CDN, and the bucket to its upload sessions, by the address that they came to.
func (b *bench) between(ctx context.Context, s *site, shape link.Shape) error {
	args := []string{
		"bench", "link", "--at", far, "--round-trip", shape.RoundTrip.String(),
		"--stream", strconv.FormatInt(shape.Stream, 10), "--total", strconv.FormatInt(shape.Total, 10),
	}
	for _, at := range append([]string{s.bucketURL}, b.hub.Lines...) {
		u, err := url.Parse(at)
		if err != nil {
			return err
		}
		args = append(args, "--to", u.Host)
	}
	l, err := server.Start(ctx, b.Self, b.Environ, 1, args...)
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
