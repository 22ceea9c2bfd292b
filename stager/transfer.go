package stager

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// transfer is the copying of one model.
type transfer struct {
	Config
	model   manifest.Model
	meter   *meter
	there   map[string]Object  // the model's objects by key, as they were listed
	left    []Object           // what earlier runs kept for a restart
	known   *manifest.Manifest // where the model is staged and only lacks objects
	files   []manifest.File    // what is known of each file once it is stored, in the order of paths
	reused  int64              // bytes
	adopted bool               // files that were there before this run, or that another run stored

	unchanged map[string]original // files that another commit has, by path

	mu      sync.Mutex
	copied  map[string]bool // the paths of those that were copied from there
	discard []*job          // whose parts are wrong

	group   *errgroup.Group
	buffers *pool
	gate    *gate        // for ranged reads
	asked   int64        // bytes that were asked for; the planner's
	arrived atomic.Int64 // bytes, counted while they come
}

// job is a file that has to be sent.
type job struct {
	RemoteFile
	index  int    // in transfer.files
	upload Upload // nil where the file goes up in one piece
	pieces []piece
	hashed chan *sums    // those up to the piece that is put on its way next
	chunks []uint32      // sums, filled by the parts
	stored chan struct{} // one for each part that is stored
}

// run returns when every file is in the bucket, or with the first error and nothing running.
func (t *transfer) run(ctx context.Context, files []RemoteFile) error {
	t.announce(files)
	if err := t.copyUnchanged(ctx, files); err != nil {
		return err
	}
	jobs, err := t.prepare(ctx, files)
	defer t.close(jobs)
	if err != nil {
		return err
	}
	t.count(files, jobs)
	t.buffers = newPool(t.ChunkSize, max(t.Memory/t.ChunkSize, int64(t.PartChunks)))
	t.gate = newGate(t.Streams)
	t.group, ctx = errgroup.WithContext(ctx)
	t.group.Go(func() error { return t.adoptAll(ctx, files, jobs) })
	t.group.Go(func() error { return t.sendAll(ctx, jobs) })
	return t.group.Wait()
}

// sendAll is the one planner: it alone asks for buffers, in the order of turns.
func (t *transfer) sendAll(ctx context.Context, jobs []*job) error {
	tuning, stop := context.WithCancel(ctx)
	defer stop()
	t.group.Go(func() error { t.tune(tuning); return nil })
	for j, i := range turns(jobs, t.Cores) {
		if err := t.send(ctx, j, i); err != nil {
			return err
		}
	}
	return nil
}

// tune adapts the number of ranged reads in flight to what they bring.
func (t *transfer) tune(ctx context.Context) {
	const window = 500 * time.Millisecond
	tuner := newTuner(t.Streams, t.Streams, t.MostStreams)
	tick := time.NewTicker(window)
	defer tick.Stop()
	for before, width := int64(0), t.Streams; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := t.arrived.Load()
		next := tuner.next(float64(now-before), t.gate.crowd() > window/2)
		if before = now; next != width {
			t.Log.Debug("ranged reads in flight", "before", width, "now", next)
			width = next
			t.gate.resize(width)
		}
	}
}

// close releases the uploads, after nothing writes to them any more.
func (t *transfer) close(jobs []*job) {
	// What is wrong is removed also when the run was cancelled, but not for long.
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	for _, j := range t.discard {
		if err := j.upload.Discard(ctx); err != nil {
			t.Log.Warn("removing the parts of a file that is wrong", "path", j.Path, "err", err)
		}
	}
	for _, j := range jobs {
		if j.upload == nil {
			continue
		}
		if err := j.upload.Close(); err != nil {
			t.Log.Warn("closing an upload", "path", j.Path, "err", err)
		}
	}
}

// prepare returns a job for every file that is not there, small files first, then the largest: what is
// hashed last is short. Each upload is opened: a bucket without room for them, or without permission, says
// so before the first byte is sent.
func (t *transfer) prepare(ctx context.Context, files []RemoteFile) ([]*job, error) {
	partSize := t.ChunkSize * int64(t.PartChunks)
	var jobs []*job
	for i, f := range files {
		key := t.model.Object(f.Path)
		if _, ok := t.there[key]; ok || t.copied[f.Path] {
			continue
		}
		j := &job{RemoteFile: f, index: i}
		var parts []Part
		if f.Size > partSize {
			var err error
			j.upload, err = t.Store.Upload(ctx, key, dirOf(t.model, f.Path), f.Size)
			if errors.Is(err, fs.ErrExist) {
				t.there[key] = Object{Key: key, Size: -1} // written by somebody else just now
				continue
			}
			if err != nil {
				return jobs, err
			}
			parts = j.upload.Parts()
		}
		j.pieces = plan(f, parts, t.ChunkSize, partSize)
		j.chunks = make([]uint32, manifest.NumChunks(f.Size, t.ChunkSize))
		j.stored = make(chan struct{}, len(j.pieces))
		j.hashed = make(chan *sums, 1)
		j.hashed <- newSums(f)
		jobs = append(jobs, j)
	}
	slices.SortStableFunc(jobs, func(a, b *job) int {
		switch {
		case a.upload == nil && b.upload == nil:
			return 0 // in the order of paths
		case a.upload == nil:
			return -1
		case b.upload == nil:
			return 1
		}
		return cmp.Compare(b.Size, a.Size)
	})
	return jobs, nil
}

// announce says how much there is.
func (t *transfer) announce(files []RemoteFile) {
	var total, there int64
	for _, f := range files {
		total += f.Size
		if o, ok := t.there[t.model.Object(f.Path)]; ok && o.Size == f.Size {
			there += f.Size
		}
	}
	t.meter.planned(len(files), total, there)
}

// count says what there is to do, and what an earlier run has done of it.
func (t *transfer) count(files []RemoteFile, jobs []*job) {
	for _, f := range files {
		if !t.copied[f.Path] {
			t.reused += f.Size
		}
	}
	for _, j := range jobs {
		for _, p := range j.pieces {
			if p.have == nil {
				t.reused -= p.Size
			}
		}
	}
	t.meter.found(t.reused)
	t.Log.Info("planned", "model", t.model, "files", len(files), "send", len(jobs), "copied", len(t.copied), "bytes", t.meter.counted().Total, "there", t.reused)
}

// pool lends buffers of one size, at most most of them.
type pool struct {
	size int64
	most int64
	made int64
	free chan []byte
}

func newPool(size, most int64) *pool {
	return &pool{size: size, most: most, free: make(chan []byte, most)}
}

// get waits for a buffer. One goroutine alone calls it, in the order of the plan: so the part whose
// turn it is can always get what it needs, and the others never hold everything.
func (p *pool) get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.free:
		return b, nil
	default:
	}
	if p.made < p.most {
		p.made++
		return make([]byte, p.size), nil
	}
	select {
	case b := <-p.free:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *pool) put(b []byte) { p.free <- b[:p.size] }
