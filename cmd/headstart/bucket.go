package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/stager/bucket"
)

func newBucketCommand(p process) *cobra.Command {
	var dir, addr string
	var create []string
	var omitMD5, discard bool
	var policy bucket.Policy
	var rate int64
	cmd := &cobra.Command{
		Use:   "bucket",
		Short: "Serve Cloud Storage's protocol from a directory, for any client",
		Long: `bucket serves the folders below --dir as Cloud Storage buckets (JSON and XML API, and for reading
gRPC, all on one port) until it is interrupted. Its URL is the first line on stdout: give it to clients as
STORAGE_EMULATOR_HOST and, for gRPC, STORAGE_EMULATOR_HOST_GRPC (some want HOST:PORT there). It is for
trying things out and for tests: it asks for no credentials, so keep it on the loopback address.

A bucket keeps the policies that it was given, by the flags below or by a client.`,
		Example: `  headstart bucket --dir /tmp/buckets --create models
  STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT headstart stage google/gemma-3-1b-it --bucket gs://models
  curl http://127.0.0.1:PORT/models/OBJECT`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := bucket.New(dir)
			if err != nil {
				return err
			}
			s.OmitMD5, s.Discard = omitMD5, discard
			for _, name := range create {
				if err := s.CreateBucket(name); err != nil && !errors.Is(err, fs.ErrExist) {
					return err
				}
				if !anyChanged(cmd, "retention", "hold", "versioning", "soft-delete") {
					continue
				}
				if err := s.SetPolicy(name, policy); err != nil {
					return err
				}
			}
			return p.announce(cmd.Context(), addr, bucket.Shape{Total: rate}.Handler(s))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`FOLDER` that holds the buckets")
	cmd.Flags().StringArrayVar(&create, "create", nil, "make the bucket `NAME` if it does not exist; may repeat")
	cmd.Flags().BoolVar(&omitMD5, "omit-md5", false, "no MD5 of objects whose upload declared none: it costs 1.5 CPU-seconds a gigabyte here")
	cmd.Flags().BoolVar(&discard, "discard", false, "sum the bytes of objects over 1 MiB and drop them: for sending models that are larger than the disk")
	cmd.Flags().StringVar(&addr, "listen", "127.0.0.1:0", "`HOST:PORT` to listen on; port 0 takes a free one")
	cmd.Flags().Int64Var(&rate, "rate", 0, "`BYTES` a second at most, of all requests and answers together; 0 for no limit")
	cmd.Flags().DurationVar(&policy.Retention, "retention", 0, "retention policy of the buckets of --create: objects that are younger stay; 0: none")
	cmd.Flags().BoolVar(&policy.DefaultHold, "hold", false, "put an event-based hold on new objects of the buckets of --create")
	cmd.Flags().BoolVar(&policy.Versioning, "versioning", false, "keep what is overwritten or deleted in the buckets of --create")
	cmd.Flags().DurationVar(&policy.SoftDelete, "soft-delete", 0, "keep what is deleted in the buckets of --create so that it can be restored (new buckets of the service: 168h); 0: not")
	require(cmd, "dir")
	return cmd
}

func anyChanged(cmd *cobra.Command, names ...string) bool {
	return slices.ContainsFunc(names, cmd.Flags().Changed)
}

// announce serves h at addr until ctx ends, and says where as the first line on stdout; where the others
// are is on the following ones.
func (p process) announce(ctx context.Context, addr string, h http.Handler, more ...*server) error {
	s, err := listen(ctx, addr, h)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.Stdout, s.URL())
	for _, m := range more {
		fmt.Fprintln(p.Stdout, m.URL())
	}
	return serve(ctx, append(more, s)...)
}
