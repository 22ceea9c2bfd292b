package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
)

// defaultSocket is where the node and those who talk to it meet when nobody says otherwise.
const defaultSocket = "/run/headstart/node.sock"

// drain is how long a node that is told to stop lets loads go on whose readers wait. A pod is given
// 30 s by default before it is killed.
const drain = 20 * time.Second

func newNodeCommand(p process) *cobra.Command {
	var dir, socket, addr string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the node's daemon: keep models in a cache directory and show them to pods",
		Long: `node brings models from the bucket into its cache directory, each one once however many pods
want it, and publishes them as directories: a read-only bind mount of a model that is complete, a
mount that lets reads wait for their bytes while it loads. It answers publish, unpublish, wait and
status on its socket, and serves /metrics and /healthz. It needs root and /dev/fuse for mounts.

After an end of any kind the next node on the same cache directory goes on: complete models are
there, loads continue, mounts that died are replaced.`,
		Example: `  headstart node --cache /var/lib/headstart --bucket gs://models
  mount -t tmpfs -o huge=always,size=100G tmpfs /mnt/cache && headstart node --cache /mnt/cache --bucket gs://models
  curl http://127.0.0.1:9095/metrics`,
		Args: cobra.NoArgs,
	}
	bucket := bucketFlag(cmd, p)
	cmd.Flags().StringVar(&dir, "cache", "", "`DIR` for the models, on a disk or a tmpfs; one node at a time uses it")
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "`PATH` of the control socket; only its owner may use it")
	cmd.Flags().StringVar(&addr, "listen", "127.0.0.1:9095", "`HOST:PORT` of /metrics and /healthz; port 0 takes a free one")
	require(cmd, "cache")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		u, err := bucket()
		if err != nil {
			return err
		}
		return p.node(cmd.Context(), u, dir, socket, addr)
	}
	return cmd
}

// node wires the daemon and runs it until ctx ends.
func (p process) node(ctx context.Context, u bucketURL, dir, socket, addr string) (err error) {
	log := p.logger(slog.LevelInfo)
	source, closeSource, err := openSource(ctx, u)
	if err != nil {
		return err
	}
	defer closeSource()
	entries, err := cache.Open(dir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	engine := fetch.New(fetch.Config{Source: source, Log: log})
	models := loader.New(loader.Config{Cache: entries, Engine: engine, Source: source, Log: log, Drain: drain})
	l, err := control.Listen(socket)
	if err != nil {
		return err
	}
	metrics, err := listen(ctx, addr, nodeMetrics(engine, models))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	log.Info("node", "version", version(), "bucket", u, "cache", dir, "socket", socket, "metrics", metrics.URL()+"/metrics")

	// The engine outlives the loader, which outlives those who ask it: each ends when what stands on
	// it has ended.
	g, ctx := errgroup.WithContext(ctx)
	asked, askedEnd := context.WithCancel(context.WithoutCancel(ctx))
	loaded, loadedEnd := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { defer askedEnd(); return control.New(models, log).Run(ctx, l) })
	g.Go(func() error { defer loadedEnd(); return models.Run(asked) })
	g.Go(func() error { return engine.Run(loaded) })
	g.Go(func() error { return serve(ctx, metrics) })
	return g.Wait()
}

// nodeMetrics serves the metrics of the node and its health.
func nodeMetrics(engine *fetch.Engine, models *loader.Loader) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	reg.MustRegister(engine.Collectors()...)
	reg.MustRegister(models.Collectors()...)
	return metricsHandler(reg)
}
