package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

const bucketName = "models"

// services are the embedded Hub and bucket.
type services struct {
	servers   []*http.Server
	serving   errgroup.Group
	bucket    *bucket.Server
	bucketURL string
}

// serve starts both and points the processes' environment at them.
func (d *demo) serve() (*services, error) {
	s := &services{}
	h := hub.New(hub.Config{}, d.repo)
	var hubURL, cdnURL string
	b, err := bucket.New(d.place.Path(bucketDir))
	if err == nil {
		s.bucket = b
		// The demo shows how fast the road is, not how fast this server computes a sum that a composite
		// object does not have anyway.
		b.OmitMD5 = true
		err = b.CreateBucket(bucketName)
	}
	for _, x := range []struct {
		url *string
		h   http.Handler
	}{{&hubURL, h.Handler()}, {&cdnURL, h.CDN()}, {&s.bucketURL, b}} {
		if err == nil {
			*x.url, err = s.listen(x.h)
		}
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("starting the embedded Hub and bucket: %w", err)
	}
	h.SetCDN(cdnURL)
	d.env = child.Environ(d.cfg.Environ, map[string]string{
		"HF_ENDPOINT": hubURL, "HF_HOME": d.place.Path("hf"),
		"STORAGE_EMULATOR_HOST": s.bucketURL, "HEADSTART_BUCKET": "gs://" + bucketName,
	})
	d.say("the embedded Hub is %s, the embedded bucket is gs://%s at %s", hubURL, bucketName, s.bucketURL)
	return s, nil
}

func (s *services) listen(h http.Handler) (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second}
	s.servers = append(s.servers, server)
	s.serving.Go(func() error { return server.Serve(l) })
	return "http://" + l.Addr().String(), nil
}

func (s *services) close() {
	for _, server := range s.servers {
		_ = server.Close() // what is still being answered is answered to nobody
	}
	_ = s.serving.Wait() // http.ErrServerClosed
	if s.bucket != nil {
		_ = s.bucket.Close() // its folder is removed next
	}
}

// hubSums returns the sha256 of these files of the Hub's: what it names LFS files by, and for small
// ones, of which it only says git's sha1, the digest of the bytes it serves.
func hubSums(ctx context.Context, repo hub.Repo, files []hub.File) (map[string]manifest.Digest, error) {
	sums := map[string]manifest.Digest{}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		sum, err := sumOf(repo, f)
		if err != nil {
			return nil, fmt.Errorf("the Hub's sha256 of %s: %w", f.Path, err)
		}
		sums[f.Path] = sum
	}
	return sums, nil
}

func sumOf(repo hub.Repo, f hub.File) (sum manifest.Digest, err error) {
	if f.LFS {
		b, err := f.SHA256()
		return manifest.Digest(b), err
	}
	r, err := repo.Open(f.Path)
	if err != nil {
		return sum, err
	}
	if c, ok := r.(io.Closer); ok {
		defer func() { err = errors.Join(err, c.Close()) }()
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, f.Size)); err != nil {
		return sum, err
	}
	return manifest.Digest(h.Sum(nil)), nil
}
