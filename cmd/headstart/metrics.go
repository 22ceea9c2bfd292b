package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/stager"
)

// observed is a staging that can be looked at: over HTTP while it runs, in a file when it has ended.
type observed struct {
	staging *stager.Metrics
	file    string               // "" for none
	own     *prometheus.Registry // what the file gets: the rest would collide with node_exporter's own
	code    prometheus.Gauge
}

// newObserved makes the metrics of the staging of repo. When an earlier run into the same file succeeded
// is taken over: a failure does not make that forgotten.
func newObserved(repo, file string) (*observed, error) {
	o := &observed{staging: stager.NewMetrics(), file: file, own: prometheus.NewRegistry(),
		code: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_stage_exit_code", Help: "The exit code of the last run, as headstart --help lists them."})}
	prometheus.WrapRegistererWith(prometheus.Labels{"model": repo}, o.own).MustRegister(o.staging.Collectors()...)
	if file == "" {
		return o, nil
	}
	last, err := lastSuccess(file, repo)
	if err != nil {
		return nil, fmt.Errorf("--metrics-file %s: %w", file, err)
	}
	o.staging.LastSuccess(last)
	prometheus.WrapRegistererWith(prometheus.Labels{"model": repo}, o.own).MustRegister(o.code)
	return o, nil
}

// lastSuccess reads from an earlier file when a run succeeded; 0 for never. A file that is none of ours
// is an error: it is about to be replaced.
func lastSuccess(file, repo string) (float64, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(f)
	if err != nil {
		return 0, inTheWay{fmt.Errorf("it is there and holds no metrics (%w): remove it, or give another name", err)}
	}
	for _, m := range families["headstart_stage_last_success_timestamp_seconds"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "model" && l.GetValue() == repo {
				return m.GetGauge().GetValue(), nil
			}
		}
	}
	return 0, nil
}

// During serves the metrics at addr, if there is one, while work runs, and writes the file afterwards.
func (o *observed) During(ctx context.Context, p process, addr string, work func(context.Context) error) (err error) {
	defer func() {
		if o.file != "" {
			o.code.Set(float64(exitCode(ctx, err)))
			if err == nil {
				o.code.Set(exitOK)
			}
			if failed := prometheus.WriteToTextfile(o.file, o.own); failed != nil {
				err = errors.Join(err, fmt.Errorf("--metrics-file: %v", failed)) // not its class: it is not about the model
			}
		}
	}()
	if addr == "" {
		return work(ctx)
	}
	s, err := listenAs(ctx, "--metrics", addr, o.handler())
	if err != nil {
		return err
	}
	p.logger(slog.LevelInfo).Info("serving metrics", "url", s.URL()+"/metrics")
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return serve(serving, s) })
	err = work(ctx)
	stop()
	return errors.Join(err, g.Wait())
}

// handler serves the metrics and the process's own, and its health: whoever answers is alive.
func (o *observed) handler() http.Handler {
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	return metricsHandler(prometheus.Gatherers{o.own, process})
}

// metricsHandler serves /metrics and /healthz.
func metricsHandler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// buildInfo is the version that runs.
func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "headstart_build_info", Help: "The version that runs; always 1.", ConstLabels: prometheus.Labels{"version": version()},
	}, func() float64 { return 1 })
}
