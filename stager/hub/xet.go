package hub

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// Xet is how the server offers LFS files through a content-addressed store too, which is a third host: [Server.CAS].
// Each file is read once, when somebody first asks what it is called there.
type Xet struct {
	Packing xorb.Config
	// Bridge is the size in bytes of the largest file that can be had without Xet; 0: 50·10⁹, from where on
	// huggingface_hub 2.4.0 does not even try.
	Bridge int64
}

// bridges reports whether a file of that size can be had over plain HTTP.
func (x *Xet) bridges(size int64) bool {
	if x == nil {
		return true
	}
	limit := x.Bridge
	if limit == 0 {
		limit = 50_000_000_000
	}
	return size <= limit
}

// store is what is in the content-addressed store.
type store struct {
	mu      sync.Mutex
	content map[[32]byte]*content // by sha256
	files   map[string]xetFile    // by repository and hash, see fileKey
}

// content is the bytes of a file, wherever they occur.
type content struct {
	layout *xorb.Layout
	busy   chan struct{} // has room for one: who asks for names
	names  *xorb.Names   // nil: not known yet
}

// xetFile is a file that those can have who may read its repository.
type xetFile struct {
	layout *xorb.Layout
	names  xorb.Names
	size   int64
}

func fileKey(repo, hash string) string { return repo + " " + hash }

// at returns the content with a digest; lay lays it out where nobody asked before.
func (t *store) at(sum [32]byte, lay func() *xorb.Layout) *content {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.content[sum]
	if c == nil {
		c = &content{layout: lay(), busy: make(chan struct{}, 1)}
		t.content[sum] = c
	}
	return c
}

func (t *store) add(repo string, f xetFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files[fileKey(repo, f.names.File.String())] = f
}

// file returns a file of a repository by its hash.
func (t *store) file(repo, hash string) (xetFile, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, ok := t.files[fileKey(repo, hash)]
	return f, ok
}

// xetHash returns what a file is called in the store, from where it can be had from then on; "" where there is no
// store, or the file is not for it.
func (s *Server) xetHash(ctx context.Context, repo Repo, f *File) (string, error) {
	if s.cfg.Xet == nil || !f.LFS || f.Size == 0 {
		return "", nil
	}
	sum, err := f.SHA256()
	if err != nil {
		return "", fmt.Errorf("digest of %s: %w", f.Path, err)
	}
	c := s.store.at(sum, func() *xorb.Layout {
		return xorb.New(func() (io.ReaderAt, error) { return repo.Open(f.Path) }, f.Size, s.cfg.Xet.Packing)
	})
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if c.names == nil {
		// What is begun is finished, however impatient the client: the next one gains.
		names, err := c.layout.Hash(context.WithoutCancel(ctx))
		if err != nil {
			return "", fmt.Errorf("hash of %s: %w", f.Path, err)
		}
		c.names = &names
	}
	s.store.add(repo.Name(), xetFile{layout: c.layout, names: *c.names, size: f.Size})
	return c.names.File.String(), nil
}
