package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/staging/bare"
)

// newBenchLinkCommand is the network of bench stage, a process of its own for its processor time.
func newBenchLinkCommand(p process) *cobra.Command {
	var shape link.Shape
	var at string
	var to []string
	cmd := &cobra.Command{
		Use:    "link",
		Short:  "Relay TCP connections with a round trip and limits",
		Long:   "link makes each port of --to appear at the address --at, behind a network, until it is interrupted.",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l := link.New(shape)
			g, ctx := errgroup.WithContext(cmd.Context())
			for _, target := range to {
				_, port, err := net.SplitHostPort(target)
				if err != nil {
					return usageError{err}
				}
				from, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(at, port))
				if err != nil {
					return err
				}
				defer from.Close()
				g.Go(func() error {
					return l.Serve(ctx, from, func(ctx context.Context) (net.Conn, error) {
						return new(net.Dialer).DialContext(ctx, "tcp", target)
					})
				})
			}
			fmt.Fprintln(p.Stdout, "ready")
			return g.Wait()
		},
	}
	cmd.Flags().StringVar(&at, "at", "127.0.0.2", "`ADDRESS` to listen at, on the ports of --to")
	cmd.Flags().StringArrayVar(&to, "to", nil, "`HOST:PORT` behind the network; may repeat")
	cmd.Flags().DurationVar(&shape.RoundTrip, "round-trip", 0, "time there and back")
	cmd.Flags().Int64Var(&shape.Stream, "stream", 0, "`BYTES` a second of one connection, each way; 0 for no limit")
	cmd.Flags().Int64Var(&shape.Total, "total", 0, "`BYTES` a second of all connections, each way; 0 for no limit")
	require(cmd, "to")
	return cmd
}

// newBenchBareCommand is the bare loop of bench stage, a process of its own for the same reason.
func newBenchBareCommand(p process) *cobra.Command {
	var c bare.Config
	cmd := &cobra.Command{
		Use:    "bare MODEL",
		Short:  "Copy a model's ranges from HF_ENDPOINT to STORAGE_EMULATOR_HOST, hashed once and unchecked",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Repo, c.Hub, c.Bucket = args[0], p.Getenv("HF_ENDPOINT"), p.Getenv("STORAGE_EMULATOR_HOST")
			if c.Hub == "" || c.Bucket == "" {
				return usageError{errors.New("set HF_ENDPOINT and STORAGE_EMULATOR_HOST: this is for the embedded servers only")}
			}
			r, err := bare.Copy(cmd.Context(), c)
			if err != nil {
				return err
			}
			return json.NewEncoder(p.Stdout).Encode(map[string]any{"bytes": r.Bytes, "ranges": r.Ranges, "seconds": r.Elapsed.Seconds()})
		},
	}
	cmd.Flags().StringVar(&c.Name, "bucket-name", "models", "`NAME` of the bucket")
	cmd.Flags().IntVar(&c.Parts, "parts", 0, "`N` parts in flight; 0 is 8")
	return cmd
}
