package fetch

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	chunks       *prometheus.CounterVec
	fetched      prometheus.Counter
	rechecked    prometheus.Counter
	failed       prometheus.Counter
	bytes        prometheus.Counter
	refetches    *prometheus.CounterVec
	inFlight     prometheus.Gauge
	waiting      prometheus.Gauge
	stalls       prometheus.Counter
	stallSeconds prometheus.Counter
	unsynced     prometheus.Counter
	loads        *prometheus.CounterVec
	loadSeconds  prometheus.Histogram
	hedges       *prometheus.CounterVec
	streams      prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		chunks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_chunks_total",
			Help: "Chunks by what became of them: fetched and verified, read back after a reboot and verified, or given up."}, []string{"outcome"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_fetched_bytes_total",
			Help: "Bytes received from the source and verified."}),
		refetches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_refetches_total",
			Help: "Attempts to fetch a chunk that failed and were made again, by cause."}, []string{"cause"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_in_flight_bytes",
			Help: "Size of the chunks that are being received."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_waiting_readers",
			Help: "Readers that wait for a chunk."}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_demand_stalls_total",
			Help: "Reads that had to wait for a chunk."}),
		stallSeconds: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_demand_stall_seconds_total",
			Help: "Time that reads have waited for chunks."}),
		unsynced: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_sync_failures_total",
			Help: "Complete entries that the disk did not take and that count as not verified since."}),
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_loads_total",
			Help: "Loads that ended, by outcome."}, []string{"outcome"}),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "headstart_load_duration_seconds",
			Help: "Time from the start of a load to its success.", Buckets: prometheus.ExponentialBuckets(0.25, 2, 13)}),
	}
	m.hedges = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_hedges_total",
		Help: "Second requests for chunks that readers wait for and that are late, by outcome: won, lost, failed, or not made because there were too many."}, []string{"outcome"})
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_streams",
		Help: "Chunks that may be received at once: what the engine found to bring the most."})
	m.fetched = m.chunks.WithLabelValues("fetched")
	m.rechecked = m.chunks.WithLabelValues("rechecked")
	m.failed = m.chunks.WithLabelValues("failed")
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.chunks, m.bytes, m.refetches, m.inFlight, m.waiting, m.stalls, m.stallSeconds, m.unsynced, m.loads, m.loadSeconds, m.hedges, m.streams}
}

// ended counts a load that has its result.
func (m *metrics) ended(l *Load) {
	if l.err != nil {
		m.loads.WithLabelValues("failed").Inc()
		return
	}
	m.loads.WithLabelValues("complete").Inc()
	m.loadSeconds.Observe(l.progress.Ended.Sub(l.progress.Started).Seconds())
}
