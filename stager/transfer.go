package stager

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// transfer is the copying of one model.
type transfer struct {
	Config
	model  manifest.Model
	meter  *meter
	there  map[string]Object  // the model's objects by key, as they were listed
	left   []Object           // what earlier runs kept for a restart
	known  *manifest.Manifest // where the model is staged and only lacks objects
	files  []manifest.File    // what is known of each file once it is stored, in the order of paths
	reused int64              // bytes

	mu      sync.Mutex
	discard []*job // whose parts are wrong

	group   *errgroup.Group
	buffers *pool
	slots   chan struct{} // one for each ranged read in flight
}

// job is a file that has to be sent.
type job struct {
	RemoteFile
	index  int    // in transfer.files
	upload Upload // nil where the file goes up in one piece
	pieces []piece
	chunks []uint32      // sums, filled by the parts
	stored chan struct{} // one for each part that is stored
}

// run returns when every file is in the bucket, or with the first error and nothing running.
func (t *transfer) run(ctx context.Context, files []RemoteFile) error {
	jobs, err := t.prepare(ctx, files)
	defer t.close(jobs)
	if err != nil {
		return err
	}
	t.announce(files, jobs)
	t.buffers = newPool(t.ChunkSize, max(t.Memory/t.ChunkSize, int64(t.PartChunks)))
	t.slots = make(chan struct{}, t.Streams)
	t.group, ctx = errgroup.WithContext(ctx)
	t.group.Go(func() error { return t.adoptAll(ctx, files, jobs) })
	t.group.Go(func() error {
		for _, j := range jobs {
			if err := t.send(ctx, j); err != nil {
				return err
			}
		}
		return nil
	})
	return t.group.Wait()
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

// prepare returns a job for every file that is not there, small files first, each upload opened: a
// bucket without room for them, or without permission, says so before the first byte is sent.
func (t *transfer) prepare(ctx context.Context, files []RemoteFile) ([]*job, error) {
	partSize := t.ChunkSize * int64(t.PartChunks)
	var jobs []*job
	for i, f := range files {
		key := t.model.Object(f.Path)
		if _, ok := t.there[key]; ok {
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
		jobs = append(jobs, j)
	}
	slices.SortStableFunc(jobs, func(a, b *job) int {
		if (a.upload == nil) == (b.upload == nil) {
			return strings.Compare(a.Path, b.Path)
		}
		if a.upload == nil {
			return -1
		}
		return 1
	})
	return jobs, nil
}

// announce says what there is to do.
func (t *transfer) announce(files []RemoteFile, jobs []*job) {
	for _, f := range files {
		t.meter.at.Total += f.Size
		t.reused += f.Size
	}
	for _, j := range jobs {
		for _, p := range j.pieces {
			if p.have == nil {
				t.reused -= p.Size
			}
		}
	}
	t.meter.at.Files, t.meter.at.There = len(files), t.reused
	t.Metrics.size.Set(float64(t.meter.at.Total))
	t.Log.Info("planned", "model", t.model, "files", len(files), "send", len(jobs), "bytes", t.meter.at.Total, "there", t.reused)
	t.meter.event(Planned, "", 0, 0, 0)
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
