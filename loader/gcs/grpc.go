package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"
	"cloud.google.com/go/storage/experimental"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/headstart-serving/headstart/loader/fetch"
)

// channels is how many HTTP/2 connections the streams of a source share, in turn. One has a single reader and
// one window.
const channels = 4

// NewGRPC returns the source gs://bucket/prefix, read over gRPC: each read is one BidiReadObject stream with
// one range, which zonal buckets ask for and all others have. Where the client can, on Compute Engine in the
// bucket's region, it goes to the storage servers directly (DirectPath); the first answer tells the log which
// way it came. With STORAGE_EMULATOR_HOST_GRPC set it reads from there, unencrypted and without credentials,
// otherwise it uses the application default ones.
//
// The client's MultiRangeDownloader, which puts many ranges on one stream, is not used: it gained nothing in a
// measurement, a range of it cannot be given up, one break fails all of them, and it reads messages in a goroutine
// of its own, where a malformed one ends the process (see catch).
//
// The checksum of each message is not compared: whoever asks for a chunk compares that of the chunk.
func NewGRPC(ctx context.Context, bucket, prefix string, log *slog.Logger) (*Source, error) {
	way := &way{log: log.With("bucket", "gs://"+bucket)}
	options := []option.ClientOption{
		storage.WithDisabledClientMetrics(),
		storage.WithGRPCBidiReads(),
		option.WithGRPCConnectionPool(channels),
		// A connection whose other end is gone without a word keeps its place in the turn until a ping is lost.
		experimental.WithGRPCKeepalive(experimental.GRPCKeepaliveConfig{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPage))),
		option.WithGRPCDialOption(grpc.WithChainStreamInterceptor(way.watch)),
	}
	if os.Getenv("STORAGE_EMULATOR_HOST_GRPC") == "" {
		if os.Getenv("STORAGE_EMULATOR_HOST") != "" { // do not go to Google when something else is meant
			return nil, errors.New("STORAGE_EMULATOR_HOST is set and STORAGE_EMULATOR_HOST_GRPC is not: set both, to the same URL for headstart bucket, or neither")
		}
		options = append(options, option.WithScopes(storage.ScopeReadOnly))
	}
	client, err := storage.NewGRPCClient(ctx, options...)
	if err != nil {
		return nil, fetch.Fail(fs.ErrPermission, "no credentials for gs://%s (%v): run gcloud auth application-default login, or use a service account", bucket, err)
	}
	// Without the second option a reader whose stream breaks opens another one whatever the policy.
	client.SetRetry(storage.WithPolicy(storage.RetryNever), storage.WithErrorFunc(func(error) bool { return false }))
	s := newSource(client, bucket, prefix)
	s.overGRPC = true
	return s, nil
}

// way says once by which kind of connection the bytes come.
type way struct {
	log  *slog.Logger
	told atomic.Bool
}

func (w *way) watch(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil || w.told.Load() {
		return stream, err
	}
	return &watchedStream{stream, w}, nil
}

type watchedStream struct {
	grpc.ClientStream
	way *way
}

func (s *watchedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if p, ok := peer.FromContext(s.Context()); err == nil && ok && !s.way.told.Swap(true) {
		security := "none"
		if p.AuthInfo != nil {
			security = p.AuthInfo.AuthType()
		}
		// ALTS is what Google's servers speak among themselves: nothing else answers over DirectPath in a VM.
		s.way.log.Info("reading over gRPC", "peer", p.Addr.String(), "security", security, "directpath", security == "alts")
	}
	return err
}

// newStream is newReader over gRPC.
func (s *Source) newStream(ctx context.Context, obj *storage.ObjectHandle, off, n int64, options ...storage.ReaderOption) (r *storage.Reader, _ io.ReadCloser, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil { // after a panic nobody else ends the call
			cancel()
		}
	}()
	defer catch(&err)
	r, err = obj.NewRangeReader(ctx, off, n, options...)
	return r, &stream{r, ctx, cancel, s}, err
}

// stream is the bytes of one call.
type stream struct {
	*storage.Reader
	ctx    context.Context
	cancel context.CancelFunc
	source *Source
}

// Read implements [io.Reader].
func (b *stream) Read(p []byte) (int, error) {
	n, err := b.read(p)
	a, answered := answerOf(err)
	switch {
	case errors.Is(err, io.EOF) && b.Remain() > 0: // a stream may end well and not bring what it should
		err = io.ErrUnexpectedEOF
	case !answered:
	case b.ctx.Err() != nil:
		err = context.Cause(b.ctx)
	case a.Code == http.StatusServiceUnavailable: // the connection broke: the service need not have too much to do
		err = fmt.Errorf("the stream broke: %s", a.Message)
	default:
		err = b.source.refused(a)
	}
	return n, err
}

func (b *stream) read(p []byte) (n int, err error) {
	defer catch(&err)
	return b.Reader.Read(p)
}

// catch makes an error of a panic in the storage client, whose decoder of messages trusts the lengths in them
// (1.70.0). It is deferred.
func catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case interface{ Addr() uintptr }: // a fault of the memory that is read into: the caller's to explain
		panic(r)
	default:
		*err = fmt.Errorf("a malformed message: %v", r)
	}
}

// Close gives the stream up. How it ended Read has said.
func (b *stream) Close() error {
	_ = b.Reader.Close()
	b.cancel()
	return nil
}
