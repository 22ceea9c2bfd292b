// Package stager brings a model from a source into a bucket: plan, copy, verify, commit.
//
// Before anything is written the weights are looked at: a header that does not fit its file, or an index
// that names a file that is not there, is an error then and not when a server starts.
//
// Bytes go through memory only, each once. A chunk is one ranged read; a few chunks are a part, which
// goes up as soon as it is hashed and remembers the state of the hashes behind it, so that a run that
// was killed is continued by the next one with what was in flight. A file becomes visible when its
// sha256 (git's sha1 for small files) is the one the source names; the model when every file is: the
// manifest follows the last of them and is the commit, until which readers find nothing. After it comes
// the ref, without which a reader of a branch or a tag finds the commit it named before or none, and at
// last the removal of what was kept for a restart.
//
// Two stagers of one model may run at once: every write says what it expects to find, and finding its
// own bytes there is success.
package stager

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// Config says what a Stager works with.
type Config struct {
	Source   Source
	Store    Store
	Log      *slog.Logger
	Progress func(Event) // optional; one call at a time, must return at once
	Metrics  *Metrics    // optional; what the runs do is counted there

	Select Selection // what to take besides, or instead, of what Choose takes

	Streams     int   // ranged reads in flight at the least; 0 is 8
	MostStreams int   // at the most, where more of them bring more; 0 is 8 times Streams
	Memory      int64 // bytes of buffers at most; 0 is 384 MiB
	Cores       int   // files that are hashed side by side; 0 is GOMAXPROCS
	ChunkSize   int64 // bytes; 0 is manifest.ChunkSize
	PartChunks  int   // chunks a part; 0 is 2
}

// Stager stages models.
type Stager struct{ Config }

// New returns a Stager.
func New(c Config) *Stager {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	if c.Streams == 0 {
		c.Streams = 8
	}
	if c.MostStreams == 0 {
		c.MostStreams = 8 * c.Streams
	}
	if c.Cores == 0 {
		c.Cores = runtime.GOMAXPROCS(0)
	}
	if c.Memory == 0 {
		c.Memory = 384 << 20
	}
	if c.ChunkSize == 0 {
		c.ChunkSize = manifest.ChunkSize
	}
	if c.PartChunks == 0 {
		c.PartChunks = 2
	}
	c.divide(c.ChunkSize)
	return &Stager{c}
}

// divide sets the size of chunks in bytes, and as many of them a part as there is memory for.
func (c *Config) divide(chunkSize int64) {
	c.ChunkSize = chunkSize
	c.PartChunks = int(max(1, min(int64(c.PartChunks), c.Memory/c.ChunkSize)))
}

// Result is a model that is staged.
type Result struct {
	Manifest *manifest.Manifest
	Raw      []byte          // the manifest's bytes
	Sum      manifest.Digest // their sha256, the name to pin the model by
	Ref      string          // the branch or tag that now points to it; "" for none, and where it moved on meanwhile
	Already  bool            // nothing had to be done
	Fetched  int64           // bytes received from the source
	Copied   int64           // bytes copied inside the bucket from another commit
	Reused   int64           // bytes that an earlier run had left in the bucket
	Kept     Kept            // what the bucket did not let go of
	Elapsed  time.Duration
}

// Stage brings the model to the bucket if it is not there. Run again after any end, it goes on where
// the last run was.
func (s *Stager) Stage(ctx context.Context, ref manifest.Reference) (Result, error) {
	began := time.Now()
	r, err := s.stage(ctx, ref)
	r.Elapsed = time.Since(began)
	s.Metrics.ended(r, err)
	if err != nil {
		return r, fmt.Errorf("staging %s to %s: %w", ref, s.Store, err)
	}
	s.Log.Info("staged", "model", r.Manifest.Model, "sum", r.Sum, "files", len(r.Manifest.Files), "bytes", r.Manifest.Size(),
		"fetched", r.Fetched, "copied", r.Copied, "reused", r.Reused, "already", r.Already, "elapsed", r.Elapsed)
	return r, nil
}

func (s *Stager) stage(ctx context.Context, ref manifest.Reference) (Result, error) {
	v, err := s.survey(ctx, ref)
	if err != nil {
		return Result{}, err
	}
	model := v.snapshot.Model
	meter := &meter{report: s.Progress, metrics: s.Metrics, at: Event{Model: model}}
	r := v.before
	if v.staged() {
		if err := s.unlike(ctx, v); err != nil {
			return Result{}, err
		}
		r.Already = true
		meter.at.Total, meter.at.Stored, meter.at.Files = r.Manifest.Size(), r.Manifest.Size(), len(r.Manifest.Files)
		meter.at.There = meter.at.Total
	} else {
		if v.lacking != "" {
			s.Log.Warn("the model is staged, but not all of it is there: staging what is missing", "model", model, "first", v.lacking)
		}
		t := &transfer{Config: s.Config, model: model, meter: meter, there: v.there, left: v.left, copied: make(map[string]bool)}
		if r, err = s.copy(ctx, t, v); err != nil {
			return r, err
		}
	}
	return s.finish(ctx, r, v.snapshot, v.left, meter)
}

// staged returns the model's manifest if it is there.
func (s *Stager) staged(ctx context.Context, model manifest.Model) (Result, error) {
	raw, _, err := s.Store.Get(ctx, model.Key(), manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, nil
	}
	if err != nil {
		return Result{}, err
	}
	m, err := manifest.Parse(raw)
	if _, other := errors.AsType[*manifest.VersionError](err); other {
		return Result{}, fmt.Errorf("%s: %w", model.Key(), err)
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s in the bucket is damaged (%w): remove it and stage again, the files that are there are kept", model.Key(), err)
	}
	if m.Model != model {
		return Result{}, Fail(manifest.ErrInvalid, "%s is the manifest of %s: remove it and stage again", model.Key(), m.Model)
	}
	return Result{Manifest: m, Raw: raw, Sum: sha256.Sum256(raw)}, nil
}

// copy brings every file to the bucket and commits the model. Where its manifest is there already, what
// is missing is brought back to it and it stays as it is.
func (s *Stager) copy(ctx context.Context, t *transfer, v survey) (Result, error) {
	choice, err := s.take(ctx, v, t)
	if err != nil {
		return Result{}, err
	}
	odd, err := t.inspect(ctx, choice, v)
	if err != nil {
		return Result{}, err
	}
	for _, what := range odd {
		s.Log.Warn("the model is odd", "model", t.model, "what", what)
	}
	files := choice.Files
	t.strangers(files)
	if err := s.admit(ctx, t.model); err != nil {
		return Result{}, err
	}
	t.files = make([]manifest.File, len(files))
	err = t.run(ctx, files)
	at := t.meter.counted()
	r := Result{Fetched: at.Fetched, Copied: at.Copied, Reused: t.reused}
	if err != nil {
		if at.Stored == 0 {
			s.withdraw(t.model)
		}
		return r, err
	}
	r.Manifest = &manifest.Manifest{Model: t.model, ChunkSize: t.ChunkSize, Files: t.files}
	if r.Raw, err = manifest.Marshal(r.Manifest); err != nil {
		return r, err
	}
	r.Sum = sha256.Sum256(r.Raw)
	if t.known != nil {
		if err := identical(t.known, r.Manifest); err != nil || v.before.Manifest != nil {
			return r, err
		}
	}
	if err := s.Store.Put(ctx, t.model.Key(), 0, r.Raw); err != nil {
		return r, fmt.Errorf("committing the manifest: %w", err)
	}
	return r, t.confirm(ctx, r.Manifest)
}

// finish does what follows the commit: the ref, and the removal of what was kept for a restart.
func (s *Stager) finish(ctx context.Context, r Result, snapshot Snapshot, left []Object, meter *meter) (Result, error) {
	r.Ref = snapshot.Ref
	if r.Ref != "" {
		moved, err := s.point(ctx, snapshot.Model, r.Ref)
		if err != nil {
			return r, fmt.Errorf("the model is staged, but not its ref %q: %w", r.Ref, err)
		}
		if !moved {
			s.Log.Warn("the ref moved on while the model was being staged: it is left as it is", "model", snapshot.Model, "ref", r.Ref)
			r.Ref = ""
		}
	}
	if !r.Already {
		var err error
		if left, err = list(ctx, s.Store, partsOf(snapshot.Model)); err != nil {
			return r, fmt.Errorf("the model is staged, but its parts are not removed: %w", err)
		}
	}
	var err error
	if r.Kept, err = s.clear(ctx, left); err != nil {
		return r, fmt.Errorf("the model is staged, but its parts are not removed: %w", err)
	}
	meter.event(Committed, "", 0, 0, 0)
	return r, nil
}

// point makes the ref name the model's commit, and reports whether it does. Staging takes long: a ref
// that names another commit is asked for again, so that a slow run does not take it back to an older one.
func (s *Stager) point(ctx context.Context, model manifest.Model, ref string) (bool, error) {
	key := manifest.RefKey(model.Repo, ref)
	for tries := 1; ; tries++ {
		data, version, err := s.Store.Get(ctx, key, 64)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil && string(data) == model.Commit {
			return true, nil
		}
		if err == nil {
			now, err := s.Source.Resolve(ctx, model.Repo, ref)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
			if err != nil || now.Model != model {
				return false, nil
			}
		}
		err = s.Store.Put(ctx, key, version, []byte(model.Commit))
		// Somebody else wrote between the two calls: look again.
		if !errors.Is(err, fs.ErrExist) || tries == 5 {
			return err == nil, err
		}
	}
}

// list returns the objects below prefix in the order of their keys.
func list(ctx context.Context, store Store, prefix string) ([]Object, error) {
	var objects []Object
	for o, err := range store.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(o.Key, prefix) {
			return nil, Fail(manifest.ErrInvalid, "the bucket lists %.100q below %q", o.Key, prefix)
		}
		objects = append(objects, o)
	}
	slices.SortFunc(objects, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
	return objects, nil
}
