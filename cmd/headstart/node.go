package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/keeper"
	"github.com/headstart-serving/headstart/loader/modelfs"
)

// defaultSocket is where the node and those who talk to it meet when nobody says otherwise.
const defaultSocket = "/run/headstart/node.sock"

// drain is how long a node that is told to stop lets loads go on whose readers wait. A pod is given
// 30 s by default before it is killed.
const drain = 20 * time.Second

// workerFlag makes this process the node's worker, with its parent at that descriptor.
const workerFlag = "worker"

func newNodeCommand(p process) *cobra.Command {
	var at nodePlaces
	var worker int
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the node's daemon: keep models in a cache directory and show them to pods",
		Long: `node brings models from the bucket into its cache directory, each one once however many pods
want it, and publishes them as directories: a read-only bind mount of a model that is complete, a
mount that lets reads wait for their bytes while it loads. It answers publish, unpublish, wait and
status on its socket, and serves /metrics and /healthz. What it cannot tell in numbers it logs: one
line for each load, with its whole timeline. It needs root and /dev/fuse for mounts.

It is two processes: a worker, and its parent, which starts the worker again when it crashes or is
killed. Readers, also those in a page fault, wait meanwhile and then get their bytes (on Linux before
6.9: those that wait at that moment get an error). The worker ends with the parent.

A model lies in memory or on the disk. Memory is a tmpfs with huge pages that the node mounts at
DIR/memory: it stays when the node ends, while models are in it (to have the memory back: umount
DIR/memory), and a reboot empties it; models there count against the memory limit of the node's
container, not of its readers'. With --medium auto a model
goes to memory if it fits beside the models that are leased there, and else to the disk. What fits is
known before the first byte: by --memory-limit, by what the machine has available, and by the limits of
the node's cgroup. If DIR is on a tmpfs itself, that is the memory, and nothing is mounted.

--medium both is auto, and copies each model in memory to the disk, behind its readers: one at a time, each
chunk verified, waiting while a load brings bytes, without keeping the copy in the page cache. When memory
is needed for another model, and after a reboot, the copy is there: the next publish shows it. On the disk a
copy takes the place only of what nobody leases, and gives way to a model that has to lie there. A disk that
is full or fails costs the copy, not the model; status says why.

/metrics has, besides Go's own, headstart_
  fetched_bytes_total{source,outcome} chunks_total{source,outcome} refetches_total{cause}
  in_flight_bytes streams hedges_total{outcome} queue_wait_seconds{queue} waiting_readers loads_running loads_total{outcome}
  load_duration_seconds demand_stalls_total{model} demand_stall_seconds_total{model}
  publish_duration_seconds{mode,outcome} leases cache_bytes{medium,state} medium_size_bytes{medium}
  medium_available_bytes{medium} evictions_total{medium} evicted_bytes_total{medium} copies_total{outcome}
  copied_bytes_total wrong_chunks_total{medium} sync_failures_total opens_total{by} served_bytes_total served_reads_total
  failed_reads_total node_worker_restarts_total node_mounts_taken_over_total
  node_requests_taken_over_total build_info{version}

After an end of any kind the next node on the same cache directory goes on: complete models are
there, loads continue, mounts that died are replaced.`,
		Example: `  headstart node --cache /var/lib/headstart --bucket gs://models
  headstart node --cache /var/lib/headstart --medium both --memory-limit 100GiB --bucket gs://models
  curl http://127.0.0.1:9095/metrics
  headstart node --cache /var/lib/headstart --pprof :6060 &  go tool pprof http://127.0.0.1:6060/debug/pprof/profile`,
		Args: cobra.NoArgs,
	}
	bucket := sourceFlags(cmd, p)
	cmd.Flags().StringVar(&at.cache, "cache", "", "`DIR` for the models, on a disk or a tmpfs; one node at a time uses it")
	media := mediaFlags(cmd)
	cmd.Flags().StringVar(&at.socket, "socket", defaultSocket, "`PATH` of the control socket; only its owner may use it")
	cmd.Flags().StringVar(&at.metrics, "listen", "127.0.0.1:9095", "`HOST:PORT` of /metrics and /healthz; port 0 takes a free one")
	cmd.Flags().StringVar(&at.pprof, "pprof", "", "`HOST:PORT` of Go's profiles at /debug/pprof/; without HOST this machine only (default: none)")
	cmd.Flags().IntVar(&worker, workerFlag, 0, "descriptor of the parent")
	_ = cmd.Flags().MarkHidden(workerFlag) // it exists
	require(cmd, "cache")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		u, err := bucket()
		if err != nil {
			return err
		}
		if at.media, err = media(); err != nil {
			return err
		}
		if worker == 0 {
			return p.keep(cmd.Context())
		}
		parent, err := keeper.Join(worker)
		if err != nil {
			return err
		}
		return errors.Join(p.node(cmd.Context(), u, at, parent), parent.Close())
	}
	return cmd
}

// nodePlaces is where a node is found.
type nodePlaces struct {
	cache, socket, metrics, pprof string
	media                         cache.Media
}

// keep runs the node as a child of this process, called as this one was.
func (p process) keep(ctx context.Context) error {
	args := append(slices.Clone(os.Args), fmt.Sprintf("--%s=%d", workerFlag, keeper.FD))
	k := keeper.New(keeper.Config{Log: p.logger(slog.LevelInfo), Command: func() *exec.Cmd {
		return &exec.Cmd{Path: "/proc/self/exe", Args: args, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr}
	}})
	code, err := k.Run(ctx)
	if err == nil && code != exitOK {
		err = said{code}
	}
	return err
}

// node wires the daemon and runs it until ctx ends.
func (p process) node(ctx context.Context, u bucketURL, at nodePlaces, parent *keeper.Parent) (err error) {
	log := p.logger(slog.LevelInfo)
	source, closeSource, err := openSource(ctx, u, log)
	if err != nil {
		return err
	}
	defer closeSource()
	entries, err := cache.OpenMedia(at.cache, at.media, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	engine := fetch.New(fetch.Config{Source: source, Name: u.source(), Log: log})
	kept := make([]modelfs.Kept, len(parent.Kept))
	for i, k := range parent.Kept {
		kept[i] = modelfs.Kept(k)
	}
	models := loader.New(loader.Config{Cache: entries, Engine: engine, Source: source, Log: log, Drain: drain, Keeper: parent, Kept: kept, Restarts: parent.Restarts})
	l, err := control.Listen(at.socket)
	if err != nil {
		return err
	}
	metrics, err := listen(ctx, at.metrics, nodeMetrics(engine, models))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	profiles, err := listenProfiles(ctx, at.pprof)
	if err != nil {
		return errors.Join(err, l.Close(), metrics.l.Close())
	}
	for _, s := range profiles {
		log.Info("serving profiles", "url", s.URL()+"/debug/pprof/")
	}
	log.Info("node", "version", version(), "bucket", u, "cache", at.cache, "socket", at.socket, "metrics", metrics.URL()+"/metrics", "restarts", parent.Restarts)
	if err := parent.Ready(); err != nil {
		return errors.Join(err, l.Close())
	}

	// The engine outlives the loader, which outlives those who ask it: each ends when what stands on
	// it has ended.
	g, ctx := errgroup.WithContext(ctx)
	asked, askedEnd := context.WithCancel(context.WithoutCancel(ctx))
	loaded, loadedEnd := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { defer askedEnd(); return control.New(models, log).Run(ctx, l) })
	g.Go(func() error { defer loadedEnd(); return models.Run(asked) })
	g.Go(func() error { return engine.Run(loaded) })
	g.Go(func() error { return serve(ctx, append(profiles, metrics)...) })
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
