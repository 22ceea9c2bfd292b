// Package dir is a directory as a source: a model that was fine-tuned here, a LoRA adapter, a snapshot in
// the Hugging Face cache.
//
// Its commit is a function of the paths and the bytes and of nothing else: the first 40 digits of the
// sha256 of one line a file, "<sha256 of the file>  <path>", in the order of the paths' bytes. GNU tools
// say the same, in a directory without the folders that are passed over (below):
//
//	export LC_ALL=C; find -L . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-40
//
// So every file is read twice: for its commit, and when it is copied, where its sha256 must be the same. A
// file that changes in between is an error that names it.
//
// Symbolic links are followed to files of the same directory, and in a snapshot of the Hugging Face cache
// (models--ORG--NAME/snapshots/COMMIT) to that cache's blobs. Everything else that is no plain file or
// directory is an error. Passed over at the top are .git, .cache and .headstart.
package dir

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Source is a directory. It is safe for concurrent use.
type Source struct {
	Log *slog.Logger // optional

	dir string
	mu  sync.Mutex
	of  map[string]entry // by path, as Resolve found them
}

// entry is a file at the moment when it was hashed.
type entry struct {
	name   string // where it really is
	id     identity
	digest manifest.Digest
}

// New returns a source. It does not touch the directory.
func New(dir string) *Source { return &Source{dir: dir} }

// Resolve reads every file. The revision names what is found: "" is main, another name is a ref that will
// point to it, and a commit must be the one of the files.
func (s *Source) Resolve(ctx context.Context, repo, revision string) (stager.Snapshot, error) {
	if err := manifest.ValidRepo(repo); err != nil {
		return stager.Snapshot{}, err
	}
	found, err := s.walk()
	if err != nil {
		return stager.Snapshot{}, err
	}
	if err := s.hash(ctx, found); err != nil {
		return stager.Snapshot{}, err
	}
	m := manifest.Model{Repo: repo, Commit: commit(found)}
	s.mu.Lock()
	s.of = found
	s.mu.Unlock()
	switch {
	case revision == "":
		revision = "main"
	case revision == m.Commit:
		revision = ""
	case manifest.IsCommit(revision):
		return stager.Snapshot{}, stager.Fail(fs.ErrNotExist, "%s has the commit %s, not %s: leave the revision out, or give a name such as v2 for it", s.dir, m.Commit, revision)
	}
	if revision != "" {
		if err := manifest.ValidRevision(revision); err != nil {
			return stager.Snapshot{}, err
		}
	}
	return stager.Snapshot{Model: m, Ref: revision}, nil
}

// commit names the files' content.
func commit(files map[string]entry) string {
	paths := make([]string, 0, len(files))
	for p := range files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	h := sha256.New()
	for _, p := range paths {
		fmt.Fprintf(h, "%s  %s\n", files[p].digest, p)
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:40]
}

// hash fills in the digests. A file that is as it was the last time is not read again.
func (s *Source) hash(ctx context.Context, files map[string]entry) error {
	s.mu.Lock()
	before := s.of
	s.mu.Unlock()
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(2, runtime.NumCPU()))
	paths := make([]string, 0, len(files))
	size := int64(0)
	for p, e := range files {
		if b, ok := before[p]; ok && b.id == e.id && b.name == e.name {
			files[p] = b
			continue
		}
		paths = append(paths, p)
		size += e.id.size
	}
	if s.Log != nil && size > 1<<30 {
		s.Log.Info("reading the folder to name its content", "dir", s.dir, "files", len(paths), "bytes", size)
	}
	for _, p := range paths {
		mu.Lock()
		e := files[p]
		mu.Unlock()
		group.Go(func() error {
			digest, err := s.digest(ctx, p, e)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			e.digest = digest
			files[p] = e
			return nil
		})
	}
	return group.Wait()
}

func (s *Source) digest(ctx context.Context, path string, e entry) (manifest.Digest, error) {
	f, err := s.open(path, e)
	if err != nil {
		return manifest.Digest{}, err
	}
	defer f.Close()
	h, buf := sha256.New(), make([]byte, 1<<20)
	for n := int64(0); ; {
		if ctx.Err() != nil {
			return manifest.Digest{}, context.Cause(ctx)
		}
		k, err := f.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		if err == io.EOF && n == e.id.size {
			return manifest.Digest(h.Sum(nil)), s.unchanged(path, e, f)
		}
		if err == io.EOF || n > e.id.size {
			return manifest.Digest{}, s.changed(path)
		}
		if err != nil {
			return manifest.Digest{}, s.explain(path, err)
		}
	}
}

// Files lists what Resolve found.
func (s *Source) Files(context.Context, manifest.Model) ([]stager.RemoteFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var files []stager.RemoteFile
	for p, e := range s.of {
		digest := e.digest
		files = append(files, stager.RemoteFile{Path: p, Size: e.id.size, SHA256: &digest})
	}
	return files, nil
}
