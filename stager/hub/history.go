package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// history is a repository through time.
type history struct {
	name    string
	commits map[string]Repo   // by commit
	refs    map[string]string // full name → commit
}

const mainRef = "refs/heads/main"

// Push adds a commit and moves its repository's main branch to it. Earlier commits stay.
func (s *Server) Push(r Repo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.repos[r.Name()]
	if h == nil {
		h = &history{name: r.Name(), commits: map[string]Repo{}, refs: map[string]string{}}
		s.repos[r.Name()] = h
	}
	h.commits[r.Commit()] = r
	h.refs[mainRef] = r.Commit()
}

// SetRef points "refs/heads/NAME", "refs/tags/NAME" or "refs/pr/N" of a repository at one of its commits.
func (s *Server) SetRef(repo, ref, commit string) error {
	if len(strings.SplitN(ref, "/", 3)) != 3 || !strings.HasPrefix(ref, "refs/") {
		return fmt.Errorf("ref %q of %s is not of the form refs/heads/NAME, refs/tags/NAME or refs/pr/N", ref, repo)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.repos[repo]
	if h == nil {
		return fmt.Errorf("repository %s: %w", repo, fs.ErrNotExist)
	}
	if h.commits[commit] == nil {
		return fmt.Errorf("commit %s of %s: %w", commit, repo, fs.ErrNotExist)
	}
	h.refs[ref] = commit
	return nil
}

// Names returns the names of the repositories given to [New] and [Server.Push], sorted.
func (s *Server) Names() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.repos))
}

// find returns a copy of the repository's history; nil when there is none.
func (s *Server) find(ctx context.Context, name string) (*history, error) {
	s.mu.RLock()
	h := s.repos[name]
	if h != nil {
		h = &history{name: h.name, commits: maps.Clone(h.commits), refs: maps.Clone(h.refs)}
	}
	s.mu.RUnlock()
	if h != nil || s.cfg.Find == nil {
		return h, nil
	}
	r, err := s.cfg.Find.Find(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &history{
		name:    r.Name(),
		commits: map[string]Repo{r.Commit(): r},
		refs:    map[string]string{mainRef: r.Commit()},
	}, nil
}

// canonical returns the repository whose name differs from name by case only, or "".
func (s *Server) canonical(name string) string {
	for _, n := range s.Names() {
		if n != name && strings.EqualFold(n, name) {
			return n
		}
	}
	return ""
}

// at returns the repository at a branch, a tag, a full ref or a commit; nil when there is none.
func (h *history) at(rev string) Repo {
	if r := h.commits[rev]; r != nil {
		return r
	}
	for _, ref := range []string{"refs/heads/" + rev, "refs/tags/" + rev, rev} {
		if c, ok := h.refs[ref]; ok {
			return h.commits[c]
		}
	}
	return nil
}

// file returns the file at path, or nil.
func file(r Repo, path string) *File {
	files := r.Files()
	i, ok := slices.BinarySearchFunc(files, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return nil
	}
	return &files[i]
}

// GitSHA1 returns the name that git gives a blob of these bytes.
func GitSHA1(b []byte) [20]byte {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(b))
	h.Write(b)
	return [20]byte(h.Sum(nil))
}

// pointer returns what git holds in place of an LFS file.
func pointer(sum [32]byte, size int64) []byte {
	return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%x\nsize %d\n", sum, size)
}

// sumSHA256 reads r to its end.
func sumSHA256(r io.Reader) ([32]byte, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h.Sum(nil)), nil
}
