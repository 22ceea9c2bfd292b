package loader

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/modelfs"
)

type metrics struct {
	publish   *prometheus.HistogramVec
	evictions prometheus.Counter
	evicted   prometheus.Counter
	computed  []prometheus.Collector
}

func newMetrics(l *Loader) *metrics {
	m := &metrics{
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "headstart_publish_duration_seconds",
			Help: "Time to make a model visible, by mode and outcome.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"mode", "outcome"}),
		evictions: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_evictions_total",
			Help: "Entries that were removed to make room."}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_evicted_bytes_total",
			Help: "Size of the models that were removed to make room."}),
	}
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.computed = append(m.computed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	counter := func(name, help string, labels prometheus.Labels, value func(modelfs.Stats) float64) {
		m.computed = append(m.computed, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return value(l.served()) }))
	}
	gauge("headstart_leases", "Targets that show a model.", nil, func() float64 { return float64(l.leaseCount()) })
	for _, state := range cacheStates {
		gauge("headstart_cache_bytes", "Size of the models in the cache, by state: complete and leased, complete and idle, loading, or partial (nobody loads the rest).", prometheus.Labels{"state": state},
			func() float64 { return float64(l.cached()[state]) })
	}
	counter("headstart_opens_total", "Opens of files of models that were loading, by who answers their reads.", prometheus.Labels{"by": "node"},
		func(s modelfs.Stats) float64 { return float64(s.ServedOpens) })
	counter("headstart_opens_total", "Opens of files of models that were loading, by who answers their reads.", prometheus.Labels{"by": "kernel"},
		func(s modelfs.Stats) float64 { return float64(s.PassthroughOpens) })
	counter("headstart_served_bytes_total", "Bytes that readers got by way of the node.", nil, func(s modelfs.Stats) float64 { return float64(s.Bytes) })
	counter("headstart_served_reads_total", "Reads that the node answered.", nil, func(s modelfs.Stats) float64 { return float64(s.Reads) })
	counter("headstart_failed_reads_total", "Reads that ended with an error.", nil, func(s modelfs.Stats) float64 { return float64(s.Failed) })
	counter("headstart_node_requests_taken_over_total", "Requests of readers that waited while the node's worker was replaced.", nil, func(s modelfs.Stats) float64 { return float64(s.Taken) })
	counter("headstart_node_mounts_taken_over_total", "Mounts that went on when the node's worker was replaced.", nil, func(modelfs.Stats) float64 { return float64(l.takenOver()) })
	counter("headstart_node_worker_restarts_total", "Deaths of the node's worker, since the node began, after which another one was started.", nil, func(modelfs.Stats) float64 { return float64(l.cfg.Restarts) })
	return m
}

// Collectors returns the loader's metrics.
func (l *Loader) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{l.metrics.publish, l.metrics.evictions, l.metrics.evicted}, l.metrics.computed...)
}

func (m *metrics) published(mode Mode, err error, d time.Duration) {
	outcome := "ok"
	if err != nil {
		outcome, mode = "failed", ""
	}
	m.publish.WithLabelValues(string(mode), outcome).Observe(d.Seconds())
}

func (l *Loader) leaseCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byPath)
}

// The states of entries that cached tells apart.
const (
	leasedState  = "leased"
	idleState    = "idle"
	loadingState = "loading"
	partialState = "partial"
)

var cacheStates = []string{leasedState, idleState, loadingState, partialState}

// cached returns the size of the models in the cache by state. Leased are those too that somebody has
// open or waits for: they cannot be evicted.
func (l *Loader) cached() map[string]int64 {
	n := make(map[string]int64, len(cacheStates))
	entries := l.cfg.Cache.Entries()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		m, state := l.models[e.ID()], partialState
		switch {
		case e.Complete() && m != nil && m.wanted():
			state = leasedState
		case e.Complete():
			state = idleState
		case m != nil && m.load != nil && m.load.Progress().Ended.IsZero():
			state = loadingState
		}
		n[state] += e.Manifest().Size()
	}
	return n
}
