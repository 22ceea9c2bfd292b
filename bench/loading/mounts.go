package loading

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/manifest"
)

// node is headstart's daemon.
type node struct {
	*control.Client
	a       *attempt
	targets []string
}

// startNode starts a node with an empty cache on the medium.
func startNode(ctx context.Context, a *attempt) (*node, error) {
	cache, err := folder(a.dir, "cache")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(a.home, "node.sock")
	d, err := a.daemon("headstart node", a.Self, "node", "--cache", cache, "--socket", socket, "--listen", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := &node{Client: control.Dial(socket), a: a}
	return n, a.until(ctx, "headstart node", d, func() bool {
		_, err := n.Status(ctx)
		return err == nil
	})
}

func (n *node) ref() manifest.Reference {
	m := n.a.model()
	return manifest.Reference{Repo: m.Repo, Revision: m.Commit}
}

// publish shows the model at another target.
func (n *node) publish(ctx context.Context) (target string, err error) {
	target = filepath.Join(n.a.home, fmt.Sprintf("pod%d", len(n.targets)))
	n.targets = append(n.targets, target)
	_, err = n.Publish(ctx, n.ref(), target)
	return target, err
}

// end takes away what was published, in the node's own way.
func (n *node) end(ctx context.Context) (err error) {
	for _, target := range n.targets {
		err = errors.Join(err, n.Unpublish(context.WithoutCancel(ctx), target))
	}
	n.targets = nil
	n.Client.Close()
	return err
}

// nodeWay publishes as kubelet has it done, and waits until all is there and verified.
func nodeWay() way {
	var n *node
	return way{
		name: nodeName, checks: every,
		ready: func(ctx context.Context, a *attempt) (err error) { n, err = startNode(ctx, a); return err },
		load: func(ctx context.Context, a *attempt) error {
			target, err := n.publish(ctx)
			if err != nil {
				return err
			}
			a.from = target
			return n.Wait(ctx, n.ref(), nil)
		},
		done: func(ctx context.Context) error { return n.end(ctx) },
	}
}

// streamWay has a reader on the mount from the first moment.
func streamWay() way {
	var n *node
	return way{
		name: streamName, checks: every,
		ready: func(ctx context.Context, a *attempt) (err error) { n, err = startNode(ctx, a); return err },
		load: func(ctx context.Context, a *attempt) error {
			target, err := n.publish(ctx)
			if err != nil {
				return err
			}
			return a.read(ctx, target)
		},
		done: func(ctx context.Context) error { return n.end(ctx) },
	}
}

// The modes of gcsfuse, which counts parts in MiB.
func bufferedMode(part int64) []string {
	return []string{"--enable-buffered-read", fmt.Sprintf("--read-block-size-mb=%d", max(part>>20, 1))}
}

func cacheMode(part int64) []string {
	return []string{
		"--file-cache-max-size-mb=-1", "--file-cache-enable-parallel-downloads", "--file-cache-parallel-downloads-per-file=16",
		fmt.Sprintf("--file-cache-download-chunk-size-mb=%d", max(part>>20, 1)), "--cache-dir",
	} // and the folder
}

const (
	plainName    = gcsfuseName + ": plain"
	bufferedName = gcsfuseName + ": buffered read"
	cacheName    = gcsfuseName + ": file cache, parallel downloads"
)

func gcsfuseWays(part int64) []way {
	return []way{gcsfuseWay(plainName, nil), gcsfuseWay(bufferedName, bufferedMode(part)), gcsfuseWay(cacheName, cacheMode(part))}
}

// gcsfuseWay reads through a mount that is there already.
func gcsfuseWay(name string, mode []string) way {
	var dir string
	return way{
		name: name, checks: unchecked,
		ready: func(ctx context.Context, a *attempt) (err error) {
			dir, err = mountBucket(ctx, a, mode, readAhead)
			return err
		},
		load: func(ctx context.Context, a *attempt) error { return a.read(ctx, dir) },
	}
}

// How far the kernel reads ahead on gcsfuse's mounts, in KiB. With 128, the default, it has half of the rate; 1024
// is what GKE's own tuning advises for models. A reader of mappings then still waits for one request after
// the other: of 1024, 16384 and 131072 it is fastest with the second, over a network six times as fast as with the first.
const (
	readAhead   = 1024
	mappedAhead = 16384
)

// mountBucket mounts the bucket with gcsfuse and returns where the model is in it.
func mountBucket(ctx context.Context, a *attempt, mode []string, ahead int) (string, error) {
	at, err := folder(a.home, "mnt")
	if err != nil {
		return "", err
	}
	args := append([]string{
		a.Peers.GCSFuse, "--foreground", "--enable-hns=false", "--anonymous-access", "--implicit-dirs", "--custom-endpoint", a.url + "/storage/v1/",
	}, mode...)
	if len(mode) > 0 && mode[len(mode)-1] == "--cache-dir" {
		args = append(args, a.dir)
	}
	d, err := a.daemon("gcsfuse", append(args, bucketName, at)...)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	err = a.until(ctx, "gcsfuse", d, func() bool {
		var fs unix.Statfs_t
		return unix.Statfs(at, &fs) == nil && fs.Type == unix.FUSE_SUPER_MAGIC && unix.Stat(at, &st) == nil
	})
	if err != nil {
		return "", err
	}
	knob := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(knob, fmt.Append(nil, ahead), 0); err != nil {
		return "", fmt.Errorf("raising the read-ahead of gcsfuse: %w", err)
	}
	return filepath.Join(at, strings.TrimSuffix(a.model().Object(""), "/")), nil
}
