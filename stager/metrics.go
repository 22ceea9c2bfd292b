package stager

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what one or more runs do. Whoever makes it registers its Collectors.
type Metrics struct {
	received prometheus.Counter
	stored   *prometheus.CounterVec
	verified prometheus.Counter
	files    *prometheus.CounterVec
	chunks   prometheus.Counter
	retries  *prometheus.CounterVec
	inFlight prometheus.Gauge
	size     prometheus.Gauge
	runs     *prometheus.CounterVec
	duration prometheus.Gauge
	success  prometheus.Gauge
}

// How bytes and files came to be in the bucket.
const (
	sent   = "sent"   // by this run
	reused = "reused" // by an earlier one, which left them
	copied = "copied" // by this run, from another commit in the bucket
)

// NewMetrics returns metrics that count nothing yet.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "headstart_stage_" + name, Help: help})
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "headstart_stage_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "headstart_stage_" + name, Help: help})
	}
	m := &Metrics{
		received: counter("received_bytes_total", "Bytes received from the source."),
		stored:   vector("stored_bytes_total", "Bytes of the model that came to be in the bucket, by how: sent by this run, reused from an earlier one, or copied from another commit.", "how"),
		verified: counter("verified_bytes_total", "Size of the files whose sha256, or git sha1, was found to be the one the source names."),
		files:    vector("files_total", "Files that came to be in the bucket, whole and verified, by how: sent by this run, reused from an earlier one, or copied from another commit.", "how"),
		chunks:   counter("chunks_total", "Chunks received whole from the source."),
		retries:  vector("retries_total", "Requests that failed for a reason that may pass and were made again, by who was asked and why.", "of", "cause"),
		inFlight: gauge("in_flight_bytes", "Size of the chunks that are being received."),
		size:     gauge("model_bytes", "Size of the model that is being staged, 0 while it is not known."),
		runs:     vector("runs_total", "Runs that ended, by outcome: staged, already there, or failed.", "outcome"),
		duration: gauge("duration_seconds", "How long the last run took."),
		success:  gauge("last_success_timestamp_seconds", "When a run last ended with the model staged, in seconds since 1970; 0 for never."),
	}
	for _, how := range []string{sent, reused, copied} {
		m.stored.WithLabelValues(how)
		m.files.WithLabelValues(how)
	}
	for _, outcome := range []string{"staged", "already", "failed"} {
		m.runs.WithLabelValues(outcome)
	}
	return m
}

// Collectors returns what to register.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.received, m.stored, m.verified, m.files, m.chunks, m.retries, m.inFlight, m.size, m.runs, m.duration, m.success}
}

// LastSuccess takes over when an earlier process last succeeded, in seconds since 1970.
func (m *Metrics) LastSuccess(seconds float64) { m.success.Set(seconds) }

// Retried counts a request that is made again.
func (m *Metrics) Retried(r Retry) { m.retries.WithLabelValues(r.Of, string(r.Cause)).Inc() }

// moved counts bytes.
func (m *Metrics) moved(received, stored int64, how string) {
	m.received.Add(float64(received))
	m.stored.WithLabelValues(how).Add(float64(stored))
}

// file counts a file that is whole.
func (m *Metrics) file(size int64, how string) {
	m.verified.Add(float64(size))
	m.files.WithLabelValues(how).Inc()
}

// copied counts a file that was copied inside the bucket, where its CRC32C was compared.
func (m *Metrics) copied(size int64) {
	m.stored.WithLabelValues(copied).Add(float64(size))
	m.files.WithLabelValues(copied).Inc()
}

// ended counts a run.
func (m *Metrics) ended(r Result, err error) {
	m.duration.Set(r.Elapsed.Seconds())
	if r.Manifest != nil {
		m.size.Set(float64(r.Manifest.Size()))
	}
	switch {
	case err != nil:
		m.runs.WithLabelValues("failed").Inc()
		return
	case r.Already:
		m.runs.WithLabelValues("already").Inc()
	default:
		m.runs.WithLabelValues("staged").Inc()
	}
	m.success.Set(float64(time.Now().Unix()))
}
