package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

func newVerifyCommand(p process) *cobra.Command {
	var asJSON, deep bool
	var socket string
	cmd := &cobra.Command{
		Use:   "verify DIR | verify MODEL[@REVISION|@sha256:PIN] [DIR | --socket PATH]",
		Short: "Read a model's files back and compare every byte's checksum with the manifest",
		Long: `verify reads every file of a model in DIR and compares the CRC32C of each chunk and the sha256
of each file with the manifest: the bucket's for MODEL, else the one that fetch left in DIR.
DIR may be any copy: a mount, a disk, what another tool downloaded.

Without DIR it compares the bucket itself: each object is there and has its size. With --deep it
reads every object back, goes on after damage, and lists all of it. Staging again does not mend an object
of the right size: remove what is named, and stage again.

With --socket the node reads the model back that it has in its cache, chunk by chunk, and mends it: a chunk
with wrong bytes is named and fetched again in place, under the mounts that show it. It ends with 0 when all
is right, or right again. Restart servers that have read a wrong chunk.

` + exitHelp,
		Example: `  headstart verify /models/gemma
  headstart verify google/gemma-3-4b-it /mnt/disks/models/gemma --bucket gs://models
  headstart verify google/gemma-3-4b-it --bucket gs://models
  headstart verify google/gemma-3-4b-it --socket /run/headstart/node.sock
  headstart verify google/gemma-3-4b-it@v1 --deep --json --bucket gs://models`,
		Args: cobra.RangeArgs(1, 2),
	}
	bucket := sourceFlags(cmd, p)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&deep, "deep", false, "read every object in the bucket back")
	cmd.Flags().StringVar(&socket, "socket", "", "`PATH` of the control socket of a node, which reads back what it has")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if socket != "" {
			if deep || len(args) == 2 || isDirectory(args[0]) {
				return usageError{errors.New("--socket is about what a node has of a MODEL: it goes with neither DIR nor --deep")}
			}
			return p.verifiedOnNode(ctx, args[0], socket, asJSON)
		}
		if deep && (len(args) == 2 || isDirectory(args[0])) {
			return usageError{errors.New("--deep is about the bucket: a copy is always read whole")}
		}
		if len(args) == 1 && isDirectory(args[0]) {
			m, _, err := cache.FetchedDir(args[0])
			if err != nil {
				return err
			}
			return p.verified(ctx, m, args[0], asJSON)
		}
		ref, err := parseReference(args[0])
		if err != nil {
			return err
		}
		u, err := bucket()
		if err != nil {
			return err
		}
		source, closeSource, err := openSource(ctx, u, p.logger(slog.LevelWarn))
		if err != nil {
			return err
		}
		defer closeSource()
		m, _, err := fetch.Resolve(ctx, source, ref)
		if err != nil {
			return err
		}
		if len(args) == 2 {
			return p.verified(ctx, m, args[1], asJSON)
		}
		if deep {
			return p.verifiedDeep(ctx, source, m, u.String(), asJSON)
		}
		if err := verifyObjects(ctx, source, m); err != nil {
			return err
		}
		return p.intact(m, u.String(), "sizes", asJSON)
	}
	return cmd
}

// isDirectory tells a DIR from a MODEL: it is a path that no model's name can be, or it is there.
func isDirectory(arg string) bool {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return true
	}
	st, err := os.Stat(arg)
	return err == nil && st.IsDir()
}

// verified reads dir back.
func (p process) verified(ctx context.Context, m *manifest.Manifest, dir string, asJSON bool) error {
	var done atomic.Int64
	err := newProgress(&p, "verifying "+dir, false).During(ctx,
		func() sample { n := done.Load(); return sample{Done: n, Arrived: n, Total: m.Size()} },
		func(ctx context.Context) error {
			return fetch.Verify(ctx, dir, m, func(n int64) { done.Add(n) })
		})
	if err != nil {
		return err
	}
	return p.intact(m, dir, "bytes", asJSON)
}

// verifiedOnNode has a node read a model back.
func (p process) verifiedOnNode(ctx context.Context, model, socket string, asJSON bool) error {
	ref, err := parseReference(model)
	if err != nil {
		return err
	}
	node := control.Dial(socket)
	defer node.Close()
	var at atomic.Pointer[loader.Check]
	at.Store(&loader.Check{})
	err = newProgress(&p, "verifying "+ref.String()+" on the node", false).During(ctx,
		func() sample { c := at.Load(); return sample{Done: c.Checked, Arrived: c.Checked, Total: c.Size} },
		func(ctx context.Context) error {
			return node.Verify(ctx, ref, func(c loader.Check) { at.Store(&c) })
		})
	found := at.Load()
	if err != nil && len(found.Wrong) > 0 {
		return fmt.Errorf("%w (wrong: %s)", err, strings.Join(found.Wrong, ", "))
	}
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(found)
	}
	if len(found.Wrong) > 0 {
		_, err = fmt.Fprintf(p.Stdout, "%s on the node: had wrong bytes, and is mended: %s: restart who has read them\n", found.Model, strings.Join(found.Wrong, ", "))
		return err
	}
	_, err = fmt.Fprintf(p.Stdout, "%s on the node: %s, all bytes as in the manifest\n", found.Model, bytesOf(found.Checked))
	return err
}

func (p process) intact(m *manifest.Manifest, where, what string, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(p.Stdout).Encode(map[string]any{
			"verified": true, "compared": what, "where": where, "model": m.Model.Repo, "commit": m.Model.Commit, "files": len(m.Files), "bytes": m.Size(),
		})
	}
	_, err := fmt.Fprintf(p.Stdout, "%s in %s: %d files, %s, all %s as in the manifest\n", m.Model, where, len(m.Files), bytesOf(m.Size()), what)
	return err
}

// verifyObjects compares the bucket's listing with the manifest.
func verifyObjects(ctx context.Context, source fetch.Source, m *manifest.Manifest) error {
	sizes := make(map[string]int64)
	for o, err := range source.List(ctx, m.Model.Object("")) {
		if err != nil {
			return err
		}
		sizes[o.Key] = o.Size
	}
	var wrong []error
	for i := range m.Files {
		f := &m.Files[i]
		size, ok := sizes[m.Model.Object(f.Path)]
		switch {
		case !ok:
			wrong = append(wrong, fetch.Fail(fs.ErrNotExist, "object %s is missing: run: headstart stage %s", m.Model.Object(f.Path), m.Model))
		case size != f.Size:
			wrong = append(wrong, &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: fmt.Sprint(size)})
		}
	}
	return errors.Join(wrong...)
}
