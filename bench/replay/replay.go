// Package replay reads a model's directory the way vLLM does when it starts, checks every byte it
// read, and says where the time went. It needs no Python and no GPU.
//
// What is imitated is vLLM 0.32 with its default loader:
//
//	start    every entry is looked at; the header of every *.safetensors file is read in the order
//	         the directory gives them; config and tokenizer are read whole
//	imports  nothing is read while Python imports and the device is set up: [Config.HeadStart]
//	weights  the index, then each file it names in natural order through a private mapping with
//	         sequential advice, tensor by tensor in the order of their names, copied 4 MiB at a time
//	again    start and weights once more through new descriptors and mappings; all is in memory now
//	check    sha256 over the mappings that weights was copied from, and over every other file
//
// The stall is the time of start and weights less the time that the same two take in again: what the
// reader lost because a byte was not in memory when it wanted it. It contains waiting for the
// network, serving through FUSE, and a processor that the loading side was using.
//
// With [Config.Direct] the reader is another one: weights and again read the shards whole, 16 pieces of
// 8 MiB side by side, into memory of their own, and copy nothing.
//
// The check has a phase of its own because sha256 is slower than the memory it reads: it would be
// most of what weights measured. It sees the same pages, through the same mappings.
//
// A page that the file system cannot deliver is an error that names file and byte ([FaultError]);
// vLLM dies of it without a word.
package replay

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// Config says what to read.
type Config struct {
	Dir       string
	HeadStart time.Duration // between start and weights; vLLM's imports take 15 to 20 s
	Order     string        // of the weights, one of [Orders]; "" is [Natural]
	// Direct reads each shard whole into memory of its own, with O_DIRECT where the file system takes it,
	// as Run:ai's streamer and InstantTensor do; only in natural order.
	Direct bool
	// Want is the sha256 of each file of the model by its slash-separated path. It has to be complete:
	// a file that is missing, or more than these, is an error. Nil leaves check out.
	Want map[string]manifest.Digest
	// Report is called with each phase when it has ended; it may be nil.
	Report func(Phase)
}

// Phase is one stretch of a reader's life, in seconds since it began.
type Phase struct {
	Name  string  `json:"name"`
	Start float64 `json:"start_s"`
	End   float64 `json:"end_s"`
	Bytes int64   `json:"bytes"`
}

// Seconds returns how long the phase took.
func (p Phase) Seconds() float64 { return p.End - p.Start }

// The phases in their order.
const (
	Start   = "start"
	Imports = "imports"
	Weights = "weights"
	Again   = "again"
	Check   = "check"
)

// File is what check found.
type File struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	OK     bool   `json:"ok"`
}

// Result is what a reader has to say. Times are in seconds, rates in bytes per second.
type Result struct {
	Began    time.Time `json:"began"`
	Verified bool      `json:"verified"` // every byte of every file of Config.Want was compared, and is right
	Bytes    int64     `json:"bytes"`    // read in start and weights
	Weights  int64     `json:"weight_bytes"`
	Shards   int       `json:"shards"`
	Tensors  int       `json:"tensors"`
	Direct   int       `json:"direct_opens,omitempty"` // of shards that could be opened with O_DIRECT, again included
	Phases   []Phase   `json:"phases"`
	First    float64   `json:"first_weight_s"` // when the first 4 MiB of weights were there
	Stall    float64   `json:"stall_s"`
	Rate     float64   `json:"rate"`       // of weights
	Memory   float64   `json:"again_rate"` // of weights, the second time
	Files    []File    `json:"files,omitempty"`
}

// Phase returns the phase of that name, or an empty one that did not take place.
func (r *Result) Phase(name string) Phase {
	for _, p := range r.Phases {
		if p.Name == name {
			return p
		}
	}
	return Phase{Name: name}
}

// reader is one run.
type reader struct {
	cfg    Config
	result Result
	kept   map[string]*mapping // shards as weights read them, for check
	buf    []byte
	copied func(path string, off int64) // after each step of a tensor; for tests
}

// Run reads the directory. The result is filled as far as it came, also when there is an error:
// one that wraps [fs.ErrNotExist], a [*FaultError], a [*manifest.MismatchError] for bytes that are
// wrong, or [manifest.ErrInvalid] for a file set that is.
func Run(ctx context.Context, cfg Config) (Result, error) {
	r := newReader(cfg)
	defer r.close()
	if err := r.run(ctx); err != nil {
		return r.result, fmt.Errorf("reading %s: %w", cfg.Dir, err)
	}
	return r.result, nil
}

func newReader(cfg Config) *reader {
	return &reader{cfg: cfg, result: Result{Began: time.Now()}, kept: map[string]*mapping{}, buf: make([]byte, step),
		copied: func(string, int64) {}}
}

func (r *reader) close() {
	for _, m := range r.kept {
		m.unmap()
	}
}

func (r *reader) run(ctx context.Context) error {
	start, err := r.phase(Start, func() (int64, error) { return r.start(ctx) })
	if err != nil {
		return err
	}
	if _, err = r.phase(Imports, func() (int64, error) { return 0, wait(ctx, r.cfg.HeadStart) }); err != nil {
		return err
	}
	weights, err := r.phase(Weights, func() (int64, error) { return r.weights(ctx, true) })
	if err != nil {
		return err
	}
	r.result.Bytes = start.Bytes + weights.Bytes
	r.result.Weights, r.result.Rate = weights.Bytes, rate(weights.Bytes, weights.Seconds())

	var walk float64
	again, err := r.phase(Again, func() (int64, error) {
		n, err := r.start(ctx)
		if err != nil {
			return n, err
		}
		began := r.now()
		w, err := r.weights(ctx, false)
		walk = r.now() - began
		return n + w, err
	})
	if err != nil {
		return err
	}
	r.result.Memory = rate(weights.Bytes, walk)
	r.result.Stall = seconds(max(0, start.Seconds()+weights.Seconds()-again.Seconds()))
	if r.cfg.Want == nil {
		return nil
	}
	_, err = r.phase(Check, func() (int64, error) { return r.check(ctx) })
	r.result.Verified = err == nil
	return err
}

// phase times what do does and counts its bytes.
func (r *reader) phase(name string, do func() (int64, error)) (Phase, error) {
	p := Phase{Name: name, Start: r.now()}
	var err error
	p.Bytes, err = do()
	p.End = r.now()
	if err != nil {
		return p, err
	}
	r.result.Phases = append(r.result.Phases, p)
	if r.cfg.Report != nil {
		r.cfg.Report(p)
	}
	return p, nil
}

func (r *reader) now() float64 { return seconds(time.Since(r.result.Began).Seconds()) }

// seconds rounds to a tenth of a millisecond: more digits are noise in what a person reads.
func seconds(s float64) float64 { return math.Round(s*1e4) / 1e4 }

func rate(n int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return math.Round(float64(n) / seconds)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
