package main

import (
	"context"
	"log/slog"

	"github.com/headstart-serving/headstart/loader/fetch"
	readfile "github.com/headstart-serving/headstart/loader/file"
	readgcs "github.com/headstart-serving/headstart/loader/gcs"
	"github.com/headstart-serving/headstart/stager"
	writefile "github.com/headstart-serving/headstart/stager/file"
	writegcs "github.com/headstart-serving/headstart/stager/gcs"
	"github.com/headstart-serving/headstart/stager/sweep"
)

// store is a bucket that is staged to, listed and swept.
type store interface {
	stager.Store
	sweep.Bucket
}

// openStore opens the bucket for writing; call the function that it returns when done. retrying, which
// may be nil, is told of every request that is made again.
func openStore(ctx context.Context, p process, u bucketURL, retrying func(stager.Retry)) (store, func(), error) {
	if u.Scheme == "file" {
		s, err := writefile.New(u.Dir)
		if err != nil {
			return nil, nil, err
		}
		s.Log = p.logger(slog.LevelInfo) // it waits for another process, and says so
		return s, func() {}, nil
	}
	s, err := writegcs.New(ctx, writegcs.Config{
		Bucket: u.Name, Prefix: u.Prefix, Emulator: p.Getenv("STORAGE_EMULATOR_HOST"), Log: p.logger(slog.LevelWarn), Retrying: retrying,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, func() { s.Close() }, nil
}

// openSource opens the bucket for reading; call the function that it returns when done.
func openSource(ctx context.Context, u bucketURL, log *slog.Logger) (fetch.Source, func(), error) {
	if u.Scheme == "file" {
		s, err := readfile.New(u.Dir)
		return s, func() {}, err
	}
	var s *readgcs.Source
	var err error
	if u.GRPC {
		s, err = readgcs.NewGRPC(ctx, u.Name, u.Prefix, log)
	} else {
		s, err = readgcs.New(ctx, u.Name, u.Prefix)
	}
	if err != nil {
		return nil, nil, err
	}
	return s, func() { s.Close() }, nil
}
