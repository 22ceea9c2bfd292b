package stager_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hub"
)

// memory is a source in memory that tells what a test wants it to.
type memory struct {
	*repo
	listing func([]stager.RemoteFile) []stager.RemoteFile                                     // changes what it says
	bytes   func(ctx context.Context, path string, off int64, data []byte) (io.Reader, error) // changes what it sends

	mu      sync.Mutex
	looked  map[string]bool // at whose header, since the files were listed
	fetched map[string]int  // how often each range was asked for, by "path offset"
	calls   int
}

func (m *memory) Resolve(_ context.Context, repo, revision string) (stager.Snapshot, error) {
	m.count("")
	if repo != m.name {
		return stager.Snapshot{}, fs.ErrNotExist
	}
	if revision == "" {
		revision = "main"
	}
	s := stager.Snapshot{Model: manifest.Model{Repo: repo, Commit: m.Commit()}, Ref: revision}
	if revision == m.Commit() {
		s.Ref = ""
	}
	return s, nil
}

func (m *memory) Files(context.Context, manifest.Model) ([]stager.RemoteFile, error) {
	m.count("")
	m.mu.Lock()
	m.looked = make(map[string]bool)
	m.mu.Unlock()
	var files []stager.RemoteFile
	for path, data := range m.files {
		f := stager.RemoteFile{Path: path, Size: int64(len(data))}
		if len(data) >= m.large {
			sum := manifest.Digest(sha256.Sum256(data))
			f.SHA256 = &sum
		} else {
			sum := hub.GitSHA1(data)
			f.GitSHA1 = hex.EncodeToString(sum[:])
		}
		files = append(files, f)
	}
	if m.listing != nil {
		files = m.listing(files)
	}
	return files, nil
}

func (m *memory) Open(ctx context.Context, _ manifest.Model, f stager.RemoteFile, off, n int64) (io.ReadCloser, error) {
	if m.header(f.Path, off) {
		return io.NopCloser(bytes.NewReader(m.files[f.Path][off : off+n])), nil
	}
	m.count(fmt.Sprintf("%s %d", f.Path, off))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	data := m.files[f.Path]
	if off+n > int64(len(data)) {
		return nil, errors.New("a range beyond the file")
	}
	var r io.Reader = bytes.NewReader(data[off : off+n])
	if m.bytes != nil {
		var err error
		if r, err = m.bytes(ctx, f.Path, off, data[off:off+n]); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(r), nil
}

// header tells the read of a header, which comes once before a file is copied, from the copying.
func (m *memory) header(path string, off int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off > 0 || m.looked == nil || m.looked[path] || !strings.HasSuffix(path, ".safetensors") {
		return false
	}
	m.looked[path] = true
	return true
}

func (m *memory) count(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if key == "" {
		return
	}
	if m.fetched == nil {
		m.fetched = make(map[string]int)
	}
	m.fetched[key]++
}

// smallRepo is enough for a crash at every write: a file that git has, an empty one, one of one part and
// one of three.
func smallRepo() *repo {
	all := exampleRepo()
	r := &repo{name: all.name, large: all.large, files: make(map[string][]byte)}
	for _, path := range []string{"config.json", "empty.txt", "model-0065536.safetensors", "model-0327697.safetensors"} {
		r.files[path] = all.files[path]
	}
	return r
}
