// Package staged is a bucket as a source: a model that is staged there, by its manifest.
//
// What is copied keeps its commit, its files, its division into chunks, and so its manifest, byte for
// byte, and its pin. The bucket is hostile: the manifest is parsed strictly, and the stager compares
// every byte with the sha256 in it.
package staged

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Store is what a source needs of a bucket. It retries what is worth retrying; its errors are final.
type Store interface {
	Get(ctx context.Context, key string, limit int64) (data []byte, version int64, err error)
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) iter.Seq2[stager.Object, error]
	String() string
}

// Source is a bucket that models are staged in.
type Source struct{ store Store }

// New returns a source. It makes no request.
func New(store Store) *Source { return &Source{store} }

// Resolve looks up what a ref names. A commit is taken as it is: its manifest says whether it is there.
func (s *Source) Resolve(ctx context.Context, repo, revision string) (stager.Snapshot, error) {
	if err := manifest.ValidRepo(repo); err != nil {
		return stager.Snapshot{}, err
	}
	if manifest.IsCommit(revision) {
		m := manifest.Model{Repo: repo, Commit: revision}
		if _, err := s.Manifest(ctx, m); err != nil {
			return stager.Snapshot{}, err
		}
		return stager.Snapshot{Model: m}, nil
	}
	if revision == "" {
		revision = "main"
	}
	if err := manifest.ValidRevision(revision); err != nil {
		return stager.Snapshot{}, err
	}
	key := manifest.RefKey(repo, revision)
	data, _, err := s.store.Get(ctx, key, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return stager.Snapshot{}, s.absent(ctx, repo, fmt.Sprintf("revision %q", revision))
	}
	if err != nil {
		return stager.Snapshot{}, err
	}
	if !manifest.IsCommit(string(data)) {
		return stager.Snapshot{}, stager.Fail(manifest.ErrInvalid, "%s/%s names no commit: stage the model there again", s.store, key)
	}
	return stager.Snapshot{Model: manifest.Model{Repo: repo, Commit: string(data)}, Ref: revision}, nil
}

// absent says what is not staged, unless it is the bucket that is not there: a listing tells.
func (s *Source) absent(ctx context.Context, repo, what string) error {
	some := false
	for _, err := range s.store.List(ctx, manifest.Private+repo+"/") {
		if err != nil {
			return err
		}
		some = true
		break
	}
	if some {
		return stager.Fail(fs.ErrNotExist, "%s has no %s in %s: see headstart ls %s --bucket %s", repo, what, s.store, repo, s.store)
	}
	return stager.Fail(fs.ErrNotExist, "%s is not staged in %s: see headstart ls --bucket %s (a folder of plain files is given as a path, without file://)", repo, s.store, s.store)
}

// Manifest returns the manifest that the model has in the bucket.
func (s *Source) Manifest(ctx context.Context, model manifest.Model) (*manifest.Manifest, error) {
	raw, _, err := s.store.Get(ctx, model.Key(), manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.absent(ctx, model.Repo, "commit "+model.Commit)
	}
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", s.store, model.Key(), err)
	}
	if m.Model != model {
		return nil, stager.Fail(manifest.ErrInvalid, "%s/%s is the manifest of %s", s.store, model.Key(), m.Model)
	}
	return m, nil
}

// Files lists what the manifest names.
func (s *Source) Files(ctx context.Context, model manifest.Model) ([]stager.RemoteFile, error) {
	m, err := s.Manifest(ctx, model)
	if err != nil {
		return nil, err
	}
	files := make([]stager.RemoteFile, len(m.Files))
	for i := range m.Files {
		f := &m.Files[i]
		files[i] = stager.RemoteFile{Path: f.Path, Size: f.Size, SHA256: &f.SHA256}
	}
	return files, nil
}

// Open reads a range of an object.
func (s *Source) Open(ctx context.Context, model manifest.Model, f stager.RemoteFile, off, n int64) (io.ReadCloser, error) {
	r, err := s.store.Open(ctx, model.Object(f.Path), off, n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stager.Fail(fs.ErrNotExist, "%s/%s is missing, though the manifest names it: stage the model there again", s.store, model.Object(f.Path))
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Path, err)
	}
	return r, nil
}
