package fetch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	chunks       *prometheus.CounterVec
	bytes        *prometheus.CounterVec
	refetches    *prometheus.CounterVec
	inFlight     prometheus.Gauge
	queueWait    *prometheus.HistogramVec
	waiting      prometheus.Gauge
	stalls       *prometheus.CounterVec
	stallSeconds *prometheus.CounterVec
	unsynced     prometheus.Counter
	running      prometheus.Gauge
	loads        *prometheus.CounterVec
	loadSeconds  prometheus.Histogram
	hedges       *prometheus.CounterVec
	streams      prometheus.Gauge

	models map[string]bool // that have a label of their own

	// What is counted for every chunk is looked up once: a look-up allocates.
	chunksBy                  map[string]prometheus.Counter // by outcome
	verified, discarded       prometheus.Counter            // of bytes
	waitDemanded, waitOrdered prometheus.Observer           // of queueWait
}

// maxModels bounds the values of the label model; the models beyond share "other".
const maxModels = 100

// Outcomes of chunks and of the bytes that came for them.
const (
	verifiedOutcome  = "verified"
	discardedOutcome = "discarded" // of an attempt that failed
	recheckedOutcome = "rechecked" // was there since before a reboot
	failedOutcome    = "failed"    // given up
)

func newMetrics(source string) *metrics {
	m := &metrics{
		models: map[string]bool{},
		chunks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_chunks_total",
			Help: "Chunks by source and outcome: fetched and verified, rechecked (read back after a reboot and verified), or failed (given up)."}, []string{"source", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_fetched_bytes_total",
			Help: "Bytes received, by source and outcome: verified, or discarded with an attempt that failed."}, []string{"source", "outcome"}),
		refetches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_refetches_total",
			Help: "Attempts to fetch a chunk that failed and were made again, by cause."}, []string{"cause"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_in_flight_bytes",
			Help: "Size of the chunks that are being received."}),
		queueWait: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "headstart_queue_wait_seconds",
			Help:    "Time until a stream took a chunk: from the demand of a reader or of the next attempt (demanded), or from the load's start (ordered).",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 11)}, []string{"queue"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_waiting_readers",
			Help: "Reads that wait for a chunk."}),
		stalls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_demand_stalls_total",
			Help: "Stretches of time in which at least one read waited for a chunk of the model."}, []string{"model"}),
		stallSeconds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_demand_stall_seconds_total",
			Help: "Time in which at least one read waited for a chunk of the model."}, []string{"model"}),
		unsynced: prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_sync_failures_total",
			Help: "Complete entries that the disk did not take and that count as not verified since."}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_loads_running",
			Help: "Loads that have not ended."}),
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_loads_total",
			Help: "Loads that ended, by outcome."}, []string{"outcome"}),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "headstart_load_duration_seconds",
			Help: "Time from the start of a load to its success.", Buckets: prometheus.ExponentialBuckets(0.25, 2, 13)}),
	}
	m.hedges = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_hedges_total",
		Help: "Second requests for chunks that readers wait for and that are late, by outcome: won, lost, failed, or not made because there were too many."}, []string{"outcome"})
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_streams",
		Help: "Chunks that may be received at once: what the engine found to bring the most."})
	m.chunksBy = map[string]prometheus.Counter{}
	for _, outcome := range []string{verifiedOutcome, recheckedOutcome, failedOutcome} { // a rate needs a zero before
		m.chunksBy[outcome] = m.chunks.WithLabelValues(source, outcome)
	}
	m.verified, m.discarded = m.bytes.WithLabelValues(source, verifiedOutcome), m.bytes.WithLabelValues(source, discardedOutcome)
	m.waitDemanded, m.waitOrdered = m.queueWait.WithLabelValues("demanded"), m.queueWait.WithLabelValues("ordered")
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.chunks, m.bytes, m.refetches, m.inFlight, m.queueWait, m.waiting, m.stalls, m.stallSeconds, m.unsynced, m.running, m.loads, m.loadSeconds, m.hedges, m.streams}
}

func (m *metrics) chunk(outcome string) { m.chunksBy[outcome].Inc() }

// received counts the bytes of one attempt.
func (m *metrics) received(all, verified int64) {
	m.verified.Add(float64(verified))
	m.discarded.Add(float64(max(0, all-verified)))
}

// taken counts how long a chunk was in the queue.
func (m *metrics) taken(d demand, now time.Time) {
	queue, since := m.waitDemanded, d.since
	if since.IsZero() {
		queue, since = m.waitOrdered, d.load.progress.Started
	}
	queue.Observe(now.Sub(since).Seconds())
}

// model returns the label of a repository. The caller holds the engine's mutex.
func (m *metrics) model(repo string) string {
	if !m.models[repo] && len(m.models) == maxModels {
		return "other"
	}
	m.models[repo] = true
	return repo
}

// began makes the counters of a load's model, so that they are there with their first value.
func (m *metrics) began(l *Load) {
	m.running.Inc()
	m.stalled(l, 0, 0)
}

func (m *metrics) stalled(l *Load, times int, d time.Duration) {
	model := m.model(l.m.Model.Repo)
	m.stalls.WithLabelValues(model).Add(float64(times))
	m.stallSeconds.WithLabelValues(model).Add(d.Seconds())
}

// ended counts a load that has its result.
func (m *metrics) ended(l *Load) {
	m.running.Dec()
	if l.err != nil {
		m.loads.WithLabelValues("failed").Inc()
		return
	}
	m.loads.WithLabelValues("complete").Inc()
	m.loadSeconds.Observe(l.progress.Ended.Sub(l.progress.Started).Seconds())
}
