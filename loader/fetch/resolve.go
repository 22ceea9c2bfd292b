package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// maxManifests bounds how many commits of one repository are looked at for a pin.
const maxManifests = 10_000

// Resolve finds the manifest that ref means: a pin by the sum of its bytes, a commit by its key, a
// branch or tag by the commit that it points to. raw is the manifest as it stands in the bucket.
//
// A model that is not staged is an error that wraps fs.ErrNotExist and says how to stage it; a
// manifest that is not one, or of another model, wraps manifest.ErrInvalid.
func Resolve(ctx context.Context, src Source, ref manifest.Reference) (*manifest.Manifest, []byte, error) {
	var m *manifest.Manifest
	var raw []byte
	var err error
	if ref.Pin != (manifest.Digest{}) {
		m, raw, err = resolvePin(ctx, src, ref)
	} else {
		m, raw, err = resolveRevision(ctx, src, ref)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("resolving %s: %w", ref, err)
	}
	return m, raw, nil
}

func resolveRevision(ctx context.Context, src Source, ref manifest.Reference) (*manifest.Manifest, []byte, error) {
	commit := ref.Revision
	if !manifest.IsCommit(commit) {
		rev := commit
		if rev == "" {
			rev = "main"
		}
		b, err := get(ctx, src, manifest.RefKey(ref.Repo, rev), 100)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, notStaged(ref, err)
		}
		if err != nil {
			return nil, nil, err
		}
		commit = string(b)
		if !manifest.IsCommit(commit) {
			return nil, nil, Fail(manifest.ErrInvalid, "the ref %s names %.80q, not a commit: run: headstart stage %s", rev, commit, ref)
		}
	}
	model := manifest.Model{Repo: ref.Repo, Commit: commit}
	m, raw, err := readManifest(ctx, src, model)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, notStaged(ref, err)
	}
	return m, raw, err
}

func notStaged(ref manifest.Reference, err error) error {
	if errors.Is(err, ErrNoBucket) {
		return err
	}
	remedy := fmt.Sprintf("run: headstart stage %s", ref)
	if ref.Pin != (manifest.Digest{}) {
		remedy = fmt.Sprintf("run headstart stage for the commit of %s with that pin", ref.Repo)
	}
	var missing *fault
	if errors.As(err, &missing) {
		// The source knows more: which bucket, and whether that is what is missing.
		return Fail(fs.ErrNotExist, "not staged (%v): %s", err, remedy)
	}
	return Fail(fs.ErrNotExist, "not staged: %s", remedy)
}

// readManifest reads and checks the manifest of one model.
func readManifest(ctx context.Context, src Source, model manifest.Model) (*manifest.Manifest, []byte, error) {
	raw, err := get(ctx, src, model.Key(), manifest.MaxSize)
	if err != nil {
		return nil, nil, err
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	if m.Model != model {
		return nil, nil, Fail(manifest.ErrInvalid, "the manifest of %s says that it is of %s", model, m.Model)
	}
	return m, raw, nil
}

// resolvePin looks for the pinned bytes among the manifests of all commits of the repository.
func resolvePin(ctx context.Context, src Source, ref manifest.Reference) (*manifest.Manifest, []byte, error) {
	prefix := manifest.Private + ref.Repo + "/"
	n := 0
	for obj, err := range src.List(ctx, prefix) {
		if err != nil {
			return nil, nil, err
		}
		commit, ok := strings.CutSuffix(strings.TrimPrefix(obj.Key, prefix), ".json")
		if !ok || !manifest.IsCommit(commit) {
			continue
		}
		if n++; n > maxManifests {
			return nil, nil, fmt.Errorf("more than %d commits are staged: give the commit instead of the pin", maxManifests)
		}
		raw, err := get(ctx, src, obj.Key, manifest.MaxSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since it was listed
		}
		if err != nil {
			return nil, nil, err
		}
		if manifest.Sum(raw) != ref.Pin {
			continue
		}
		m, err := manifest.Parse(raw)
		if err == nil && m.Model != (manifest.Model{Repo: ref.Repo, Commit: commit}) {
			err = Fail(manifest.ErrInvalid, "the manifest of %s@%s says that it is of %s", ref.Repo, commit, m.Model)
		}
		return m, raw, err
	}
	return nil, nil, notStaged(ref, fs.ErrNotExist)
}

// get reads a small object and tries a few times where a later answer may be another one.
func get(ctx context.Context, src Source, key string, limit int64) ([]byte, error) {
	const attempts = 5
	for n := 1; ; n++ {
		b, err := src.Get(ctx, key, limit)
		if err == nil || final(err) || errors.Is(err, manifest.ErrInvalid) || ctx.Err() != nil || n == attempts {
			return b, err
		}
		if !sleep(ctx, backoff(n)) {
			return nil, context.Cause(ctx)
		}
	}
}

// sleep waits and reports whether ctx allowed it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
