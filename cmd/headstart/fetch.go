package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
)

func newFetchCommand(p process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fetch MODEL[@REVISION|@sha256:PIN] DIR",
		Short: "Bring a staged model from the bucket into a directory, verified",
		Long: `fetch brings a staged model into a directory, with parallel reads, and checks every chunk.
A file appears under its name when it is whole and verified. Run it again and it goes on where it
was, or does nothing. It needs no privilege and no daemon: use it as an init container.

` + exitHelp,
		Example: `  headstart fetch google/gemma-3-4b-it /models/gemma --bucket gs://models
  headstart fetch google/gemma-3-4b-it@sha256:PIN /models/gemma --bucket file:///mnt/lustre/models --json`,
		Args: cobra.ExactArgs(2),
	}
	bucket := sourceFlags(cmd, p)
	asJSON := eventsFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		source, closeSource, err := openSource(ctx, u, p.logger(slog.LevelWarn))
		if err != nil {
			return err
		}
		defer closeSource()
		begin := time.Now()
		m, raw, err := fetch.Resolve(ctx, source, ref)
		if err != nil {
			return err
		}
		entry, err := cache.OpenDir(args[1], m, raw)
		if err != nil {
			return err
		}
		already := entry.Complete()
		p := p
		shown := newProgress(&p, "fetching "+ref.String(), *asJSON)
		engine := fetch.New(fetch.Config{Source: source, Log: p.logger(slog.LevelWarn)})
		l := engine.Start(entry)
		err = shown.During(ctx,
			func() sample {
				l := l.Progress()
				return sample{Done: l.Verified, Arrived: l.Verified, Total: l.Size, Note: l.Reason}
			},
			func(ctx context.Context) error { return runLoad(ctx, engine, l) })
		if err := errors.Join(err, entry.Close()); err != nil {
			return err
		}
		elapsed, fetched := time.Since(begin), l.Progress().Fetched
		if *asJSON {
			return json.NewEncoder(p.Stdout).Encode(map[string]any{
				"event": "fetched", "model": m.Model.Repo, "commit": m.Model.Commit, "pin": pin(m, entry.Sum()), "dir": args[1],
				"files": len(m.Files), "bytes": m.Size(), "fetched": fetched, "already": already, "verified": true, "seconds": elapsed.Seconds(),
			})
		}
		what := "nothing to do: it is there and was verified"
		if !already {
			what = fmt.Sprintf("%s fetched and verified in %s (%s/s)", bytesOf(fetched), elapsed.Round(10*time.Millisecond), bytesOf(int64(float64(fetched)/elapsed.Seconds())))
		}
		_, err = fmt.Fprintf(p.Stdout, "%s in %s: %s\n", m.Model, args[1], what)
		return err
	}
	return cmd
}

// runLoad runs the engine until one load ends.
func runLoad(ctx context.Context, engine *fetch.Engine, l *fetch.Load) error {
	running, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return engine.Run(running) })
	<-l.Done()
	stop()
	err := l.Err()
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	return errors.Join(err, g.Wait())
}
