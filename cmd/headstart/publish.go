package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
)

// socketFlag adds --socket to a command that talks to the node.
func socketFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("socket", defaultSocket, "`PATH` of the node's control socket")
}

func newPublishCommand(p process) *cobra.Command {
	var asJSON bool
	var layout string
	cmd := &cobra.Command{
		Use:   "publish MODEL[@REVISION|@sha256:PIN] TARGET",
		Short: "Make a model visible at a path, at once, also while it loads",
		Long: `publish asks the node to show a model as the read-only directory TARGET. A model that is not on
the node yet is loaded; its files are all visible at once and reads wait for their bytes.
TARGET is made if it does not exist; it must be empty if it does.

With --layout hf TARGET is a Hugging Face cache: a server that is told the model's name on the Hub finds
it there, offline, with HF_HUB_CACHE=TARGET/hub (or HF_HOME=TARGET) and HF_HUB_OFFLINE=1. The path of the
files in it never changes, also not when the model is complete.`,
		Example: `  headstart publish google/gemma-3-4b-it /models/gemma
  headstart publish google/gemma-3-4b-it@sha256:PIN /models/gemma --socket /run/headstart/node.sock --json
  headstart publish google/gemma-3-4b-it /models/hf --layout hf
  HF_HUB_CACHE=/models/hf/hub HF_HUB_OFFLINE=1 vllm serve google/gemma-3-4b-it`,
		Args: cobra.ExactArgs(2),
	}
	socket := socketFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&layout, "layout", string(loader.Plain), "`NAME` of how TARGET looks: plain (the files) or hf (a Hugging Face cache with the model in it)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		as, err := loader.ParseLayout(layout)
		if err != nil {
			return usageError{err}
		}
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		target, err := absolute(args[1])
		if err != nil {
			return err
		}
		node := control.Dial(*socket)
		defer node.Close()
		published, err := node.PublishAs(cmd.Context(), ref, target, as)
		if err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(p.Stdout).Encode(published)
		}
		state := "it is complete"
		if published.Mode == loader.Stream {
			state = "it is loading, reads wait for their bytes"
		}
		if as == loader.HF {
			state += "; its readers need HF_HUB_CACHE=" + filepath.Join(target, "hub") + " and HF_HUB_OFFLINE=1"
		}
		_, err = fmt.Fprintf(p.Stdout, "%s at %s: %s\n", published.Model, target, state)
		return err
	}
	return cmd
}

func newUnpublishCommand(process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unpublish TARGET",
		Short:   "Take away what publish made visible; nothing to take away is success",
		Example: `  headstart unpublish /models/gemma`,
		Args:    cobra.ExactArgs(1),
	}
	socket := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target, err := absolute(args[0])
		if err != nil {
			return err
		}
		node := control.Dial(*socket)
		defer node.Close()
		return node.Unpublish(cmd.Context(), target)
	}
	return cmd
}

// absolute makes a target absolute: the node has another working directory.
func absolute(target string) (string, error) {
	if target == "" {
		return "", usageError{errors.New("TARGET is empty")}
	}
	return filepath.Abs(target)
}

func newWaitCommand(p process) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait MODEL[@REVISION|@sha256:PIN]",
		Short: "Wait until this node has all of a model, verified; show progress",
		Long: `wait asks the node to load a model, if it does not have it, and returns when every byte is there
and verified. It is for init containers.

` + exitHelp,
		Example: `  headstart wait google/gemma-3-4b-it --timeout 10m`,
		Args:    cobra.ExactArgs(1),
	}
	socket := socketFlag(cmd)
	asJSON := eventsFlag(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this `TIME`, for example 90s or 10m (default: never)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s is not complete after %s; what is there stays, and the load ends unless somebody else wants it", ref, timeout))
			defer cancel()
		}
		node := control.Dial(*socket)
		defer node.Close()
		var at atomic.Pointer[loader.Progress]
		at.Store(&loader.Progress{})
		p := p
		err = newProgress(&p, "loading "+ref.String(), *asJSON).During(ctx,
			func() sample {
				l := at.Load()
				return sample{Done: l.Verified, Arrived: l.Verified, Total: l.Size, Note: l.Reason}
			},
			func(ctx context.Context) error {
				return node.Wait(ctx, ref, func(l loader.Progress) { at.Store(&l) })
			})
		if err != nil {
			if ctx.Err() != nil && cmd.Context().Err() == nil {
				return context.Cause(ctx)
			}
			return err
		}
		if *asJSON {
			return json.NewEncoder(p.Stdout).Encode(struct {
				Event string `json:"event"`
				*loader.Progress
			}{"complete", at.Load()})
		}
		_, err = fmt.Fprintf(p.Stdout, "%s: all of %s is on this node, verified\n", at.Load().Model, bytesOf(at.Load().Size))
		return err
	}
	return cmd
}
