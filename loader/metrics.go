package loader

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/modelfs"
)

type metrics struct {
	publish   *prometheus.HistogramVec
	evictions *prometheus.CounterVec
	evicted   *prometheus.CounterVec
	copies    *prometheus.CounterVec
	copied    prometheus.Counter
	wrong     *prometheus.CounterVec
	computed  []prometheus.Collector
}

func newMetrics(l *Loader) *metrics {
	m := &metrics{
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "headstart_publish_duration_seconds",
			Help: "Time to make a model visible, by mode and outcome.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"mode", "outcome"}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_evictions_total",
			Help: "Models that were removed from a medium to make room there."}, []string{"medium"}),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_evicted_bytes_total",
			Help: "Size of the models that were removed from a medium to make room there."}, []string{"medium"}),
		copies: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_copies_total",
			Help: "Copies of models in memory to the disk that ended, by outcome: complete, failed, or stopped (with the node, or because their room was needed)."}, []string{"outcome"}),
		copied: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_copied_bytes_total",
			Help: "Bytes that were copied from memory to the disk, and verified on the way."}),
		wrong: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_wrong_chunks_total",
			Help: "Chunks of complete models that were read back and had other bytes than the manifest's."}, []string{"medium"}),
	}
	for _, outcome := range []string{copyComplete, copyFailed, copyStopped} { // a rate needs a zero before
		m.copies.WithLabelValues(outcome)
	}
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.computed = append(m.computed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	counter := func(name, help string, labels prometheus.Labels, value func(modelfs.Stats) float64) {
		m.computed = append(m.computed, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return value(l.served()) }))
	}
	gauge("headstart_leases", "Targets that show a model.", nil, func() float64 { return float64(l.leaseCount()) })
	for _, p := range l.cfg.Cache.AllPlaces() {
		medium := string(p.Kind())
		m.evictions.WithLabelValues(medium)
		m.evicted.WithLabelValues(medium)
		m.wrong.WithLabelValues(medium)
		for _, state := range cacheStates {
			gauge("headstart_cache_bytes", "Size of the models in the cache, by medium and state: complete and leased, complete and idle, loading, partial (nobody loads the rest), or copy (on the disk, whole or not, of a model in memory).",
				prometheus.Labels{"medium": medium, "state": state}, func() float64 { return float64(l.cachedOn(p)[state]) })
		}
		gauge("headstart_medium_size_bytes", "Size of a medium, for all that is on it.", prometheus.Labels{"medium": medium}, func() float64 { return room(p, func(r cache.Room) uint64 { return r.Size }) })
		gauge("headstart_medium_available_bytes", "What a medium still takes before a model has to be evicted.", prometheus.Labels{"medium": medium}, func() float64 { return room(p, func(r cache.Room) uint64 { return r.Available }) })
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
	return append([]prometheus.Collector{l.metrics.publish, l.metrics.evictions, l.metrics.evicted, l.metrics.copies, l.metrics.copied, l.metrics.wrong}, l.metrics.computed...)
}

// room returns one number about a place's room, NaN if it is not known.
func room(p *cache.Place, number func(cache.Room) uint64) float64 {
	r, err := p.Room()
	if err != nil {
		return math.NaN()
	}
	return float64(number(r))
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
	copyState    = "copy"
)

var cacheStates = []string{leasedState, idleState, loadingState, partialState, copyState}

// cached returns the size of the models in the cache by state, on all media together.
func (l *Loader) cached() map[string]int64 {
	n := make(map[string]int64, len(cacheStates))
	for _, p := range l.cfg.Cache.AllPlaces() {
		for state, bytes := range l.cachedOn(p) {
			n[state] += bytes
		}
	}
	return n
}

// cachedOn returns the size of the models in a place by state. Leased are those too that somebody has
// open or waits for: they cannot be evicted.
func (l *Loader) cachedOn(p *cache.Place) map[string]int64 {
	n := make(map[string]int64, len(cacheStates))
	entries := l.entries(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		m, state := l.models[e.ID()], partialState
		switch {
		case l.cfg.Cache.IsCopy(e):
			state = copyState
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
