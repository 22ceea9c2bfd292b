package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

func newOrderCommand(p process) *cobra.Command {
	var push, asJSON bool
	cmd := &cobra.Command{
		Use:   "order MODEL[@REVISION|@sha256:PIN]",
		Short: "Show the order in which this node saw a model being read; put it into the bucket for others",
		Long: `order shows in which order readers on this node demanded a model's chunks while it was loading.
The node follows what it has learnt when it loads the model again. Other nodes do when the order is in
the bucket: --push puts it there, beside the manifest. The node itself never writes to the bucket.

An order is a hint. Without one, or with one that is damaged or of another manifest, a model loads in
the order of its files; what a reader waits for comes first in any case.

` + exitHelp,
		Example: `  headstart order google/gemma-3-4b-it
  headstart order google/gemma-3-4b-it --push --bucket gs://models`,
		Args: cobra.ExactArgs(1),
	}
	socket := socketFlag(cmd)
	bucket := bucketFlag(cmd, p)
	cmd.Flags().BoolVar(&push, "push", false, "put it into the bucket; this needs permission to write there")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the order itself, byte for byte")
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
		node := control.Dial(*socket)
		defer node.Close()
		data, err := node.Order(ctx, ref)
		if err != nil {
			return err
		}
		l, err := p.learnt(ctx, u, ref, data)
		if err != nil {
			return err
		}
		if push {
			if err := p.pushOrder(ctx, u, l); err != nil {
				return err
			}
		}
		if asJSON {
			_, err := p.Stdout.Write(data)
			return err
		}
		return p.showOrder(l, push)
	}
	return cmd
}

// learntOrder is an order that was checked.
type learntOrder struct {
	m      *manifest.Manifest
	data   []byte
	chunks []int
}

// learnt checks what a node says by the manifest in the bucket.
func (p process) learnt(ctx context.Context, u bucketURL, ref manifest.Reference, data []byte) (*learntOrder, error) {
	source, closeSource, err := openSource(ctx, u, p.logger(slog.LevelWarn))
	if err != nil {
		return nil, err
	}
	defer closeSource()
	m, raw, err := fetch.Resolve(ctx, source, ref)
	if err != nil {
		return nil, err
	}
	chunks, err := order.Parse(data, m, manifest.Sum(raw))
	if err != nil {
		return nil, fmt.Errorf("what the node has learnt: %w", err)
	}
	return &learntOrder{m, data, chunks}, nil
}

// pushOrder puts an order into the bucket, in the place of an earlier one.
func (p process) pushOrder(ctx context.Context, u bucketURL, l *learntOrder) error {
	store, closeStore, err := openStore(ctx, p, u, nil)
	if err != nil {
		return err
	}
	defer closeStore()
	_, version, err := store.Get(ctx, l.m.Model.OrderKey(), order.MaxSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, manifest.ErrInvalid) {
		return err
	}
	return store.Put(ctx, l.m.Model.OrderKey(), version, l.data)
}

// showOrder prints runs of chunks that follow each other.
func (p process) showOrder(l *learntOrder, pushed bool) error {
	var document struct {
		Runs [][2]int `json:"runs"`
	}
	if err := json.Unmarshal(l.data, &document); err != nil {
		return err
	}
	where := map[bool]string{true: ", in the bucket now", false: ""}[pushed]
	fmt.Fprintf(p.Stdout, "%s: %d of %d chunks, in %d runs%s\n", l.m.Model, len(l.chunks), order.Chunks(l.m), len(document.Runs), where)
	const most = 20
	for i, run := range document.Runs {
		if i == most {
			_, err := fmt.Fprintf(p.Stdout, "… and %d more; --json has all\n", len(document.Runs)-most)
			return err
		}
		file, chunk := 0, run[0]
		for chunk >= len(l.m.Files[file].Chunks) {
			chunk -= len(l.m.Files[file].Chunks)
			file++
		}
		fmt.Fprintf(p.Stdout, "%4d chunks from %s at %s\n", run[1], l.m.Files[file].Path, bytesOf(int64(chunk)*l.m.ChunkSize))
	}
	return nil
}
