package stager

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// maxCommits is how many other commits are looked at for files that have not changed, the last that was
// staged first: each costs a request, and its manifest up to manifest.MaxSize of memory for a moment.
const maxCommits = 8

// original is a file of another commit of the same repository that has the bytes of a file of this one.
type original struct {
	key  string
	file manifest.File // with the path that it has in this commit
}

// findUnchanged looks in the manifests of the repository's other commits for files of the same sha256.
// Files whose sha256 the source does not know are small: they are fetched again.
func (t *transfer) findUnchanged(ctx context.Context, files []RemoteFile) error {
	wanted := make(map[manifest.Digest][]RemoteFile)
	for _, f := range files {
		if f.SHA256 != nil {
			wanted[*f.SHA256] = append(wanted[*f.SHA256], f)
		}
	}
	t.unchanged = make(map[string]original)
	if len(wanted) == 0 {
		return nil
	}
	prefix := manifest.Private + t.model.Repo + "/"
	all, err := list(ctx, t.Store, prefix)
	if err != nil {
		return err
	}
	commits := slices.DeleteFunc(all, func(o Object) bool {
		commit, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, prefix), ".json")
		return !ok || !manifest.IsCommit(commit) || commit == t.model.Commit
	})
	slices.SortStableFunc(commits, func(a, b Object) int { return b.Created.Compare(a.Created) })
	for _, o := range commits[:min(len(commits), maxCommits)] {
		if len(wanted) == 0 {
			break
		}
		if err := t.findIn(ctx, o.Key, wanted); err != nil {
			return err
		}
	}
	return nil
}

// findIn takes what it finds in one manifest out of wanted. A manifest that is no good is no source.
func (t *transfer) findIn(ctx context.Context, key string, wanted map[manifest.Digest][]RemoteFile) error {
	raw, _, err := t.Store.Get(ctx, key, manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, manifest.ErrInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := manifest.Parse(raw)
	if err != nil || m.Model.Key() != key {
		t.Log.Warn("not looking for unchanged files in a manifest that is damaged", "key", key, "err", err)
		return nil
	}
	if m.ChunkSize != t.ChunkSize {
		return nil // its sums are of other chunks
	}
	for i := range m.Files {
		there := &m.Files[i]
		for _, f := range wanted[there.SHA256] {
			if f.Size != there.Size {
				continue // one of two lies about the sha256: what is fetched is hashed
			}
			same := *there
			same.Path = f.Path
			t.unchanged[f.Path] = original{m.Model.Object(there.Path), same}
			delete(wanted, there.SHA256)
		}
	}
	return nil
}

// copyUnchanged copies inside the bucket what other commits have of the files that are not there. It ends
// before the first byte is fetched: what can not be copied after all is fetched like the rest.
func (t *transfer) copyUnchanged(ctx context.Context, files []RemoteFile) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, f := range files {
		from, ok := t.unchanged[f.Path]
		if _, there := t.there[t.model.Object(f.Path)]; there || !ok {
			continue
		}
		group.Go(func() error {
			err := t.Store.Copy(ctx, from.key, t.model.Object(f.Path), f.Size, from.file.CRC32C)
			if wrong, other := errors.AsType[*manifest.MismatchError](err); other && wrong.Path == from.key || errors.Is(err, fs.ErrNotExist) {
				t.Log.Warn("another commit does not have what its manifest says: fetching it", "path", f.Path, "key", from.key, "err", err)
				return nil
			}
			if err != nil {
				return err
			}
			t.mu.Lock()
			t.copied[f.Path] = true
			t.mu.Unlock()
			t.files[i] = from.file
			t.Log.Debug("copied", "path", f.Path, "bytes", f.Size, "from", from.key)
			t.meter.copied(from.file)
			return nil
		})
	}
	return group.Wait()
}
