package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// Check is what has been found of a model that is read back.
type Check struct {
	Model   string   `json:"model"`         // repo@commit
	Size    int64    `json:"bytes"`         // to read: of the model, and of its copy on the disk
	Checked int64    `json:"checked_bytes"` // of that
	Wrong   []string `json:"wrong"`         // chunks whose bytes are not the manifest's, as "path at offset (medium)"
}

// errWrong ends a copy.
var errWrong = errors.New("it had wrong bytes")

// Verify reads all of a model that this node has complete back, compares the CRC32C of each chunk with
// the manifest, and mends what is wrong: those chunks are fetched again, and it returns when the model is
// complete again. Progress, if not nil, is called from one goroutine, also with the result.
//
// Chunks are mended in place, under whoever reads them, as those are that were found altered when the
// node started: what is mounted and mapped shows the right bytes afterwards, without a second place for the
// model or a mount that changes. While a wrong chunk is fetched its bytes, which were wrong, are
// neither the old nor the new ones. A reader that has taken wrong bytes keeps them: restart it. A copy on the
// disk is read by nobody: a wrong one is removed, and made again.
//
// The error wraps fs.ErrNotExist where the model is not complete on this node.
func (l *Loader) Verify(ctx context.Context, ref manifest.Reference, progress func(Check)) error {
	if err := l.running(ctx); err != nil {
		return err
	}
	mf, raw, err := l.resolve(ctx, ref)
	if err != nil {
		return err
	}
	m := l.hold(mf, raw)
	defer l.release(m)
	e := l.cfg.Cache.Find(m.id)
	if e == nil || !e.Complete() {
		return fetch.Fail(fs.ErrNotExist, "%s is not complete on this node, and what arrives is verified: nothing to verify", mf.Model)
	}
	if progress == nil {
		progress = func(Check) {}
	}
	c := Check{Model: mf.Model.String(), Size: mf.Size(), Wrong: []string{}}
	to := l.cfg.Cache.Copy(e)
	if to != nil && to.Complete() {
		c.Size *= 2
	}
	wrong, err := l.readBack(ctx, e, &c, progress)
	if err == nil && (len(wrong) > 0 || !e.Complete()) { // or somebody else has found something
		err = m.mend(ctx, e, wrong)
	}
	if err == nil && to != nil && to.Complete() {
		if wrong, err = l.readBack(ctx, to, &c, progress); err == nil && len(wrong) > 0 {
			err = l.copyAnew(ctx, e, to)
		}
	}
	progress(c)
	if err != nil {
		return fmt.Errorf("verifying %s: %w", mf.Model, err)
	}
	return nil
}

// readBack returns the chunks of a complete entry, or copy, that are wrong.
func (l *Loader) readBack(ctx context.Context, e *cache.Entry, c *Check, progress func(Check)) (wrong []manifest.Chunk, err error) {
	m, buf := e.Manifest(), make([]byte, piece)
	for i := range m.Files {
		for ch := range m.ChunksOf(i) {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			if !e.Intact(i, ch.Index, buf) && e.Complete() && slices.Contains(l.entries(e.Place()), e) { // who evicts a copy asks nobody
				wrong = append(wrong, ch)
				at := fmt.Sprintf("%s at %d (%s)", m.Files[i].Path, ch.Offset, e.Place().Kind())
				c.Wrong = append(c.Wrong, at)
				l.metrics.wrong.WithLabelValues(string(e.Place().Kind())).Inc()
				l.cfg.Log.Error("a model has wrong bytes: they are replaced; restart who has read them", "model", c.Model, "chunk", at)
			}
			c.Checked += ch.Size
			progress(*c)
		}
	}
	return wrong, nil
}

// mend fetches chunks of a complete entry again. The caller holds m.
func (m *model) mend(ctx context.Context, e *cache.Entry, wrong []manifest.Chunk) error {
	if err := m.lock(ctx); err != nil {
		return err
	}
	err := e.Doubt(wrong)
	if err == nil {
		err = m.readyLocked()
	}
	m.unlock()
	if err != nil {
		return err
	}
	return m.loader.follow(ctx, m, nil)
}

// copyAnew removes a copy that has wrong bytes, and begins to make it again.
func (l *Loader) copyAnew(ctx context.Context, e, to *cache.Entry) error {
	select {
	case l.room <- struct{}{}:
		defer func() { <-l.room }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.endCopy(e.ID(), errWrong)
	if l.cfg.Cache.Copy(e) == to {
		if err := l.cfg.Cache.Remove(to); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.copies, e.ID())
	l.copyBehind(e, nil)
	return nil
}
