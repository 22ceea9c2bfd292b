package hub

import (
	"cmp"
	"context"
	"crypto/sha1"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// Dir finds repositories in a folder: each folder ORG/NAME below it is one, its files at their paths.
//
// It has one commit, which follows from the paths and bytes alone, so that a copy of the folder has
// the same one and a changed file makes a new one; the earlier is then gone. The first look at a
// repository reads all of it for the digests; they are kept as long as a file's size and time of
// change stay. Files over 10 MB, *.safetensors and *.bin are LFS files.
//
// Left out: .git, and .cache/huggingface as the Hub's client leaves it in a folder it downloads to.
// A symlink to a file is followed if the file is below the root. Everything else (a symlink that
// leaves the root, leads nowhere or to a directory, a socket or device, a name that no model file
// can have) makes the repository an error that names it.
type Dir struct {
	root string

	mu    sync.Mutex
	repos map[string]*dirRepo
}

// dirRepo is what is remembered of one repository between requests. It is used by one at a time.
type dirRepo struct {
	busy chan struct{} // has room for one
	sums map[string]digest
	last *snapshot
}

// snapshot is a repository as it was found. It implements Repo.
type snapshot struct {
	root, name string
	commit     string
	modified   time.Time
	files      []File
	stamps     []stamp // of files, in their order
}

// stamp is what tells that a file has not changed.
type stamp struct {
	size     int64
	modified time.Time
}

// digest is the sha256 of an LFS file or the git sha1 of a small one, with the stamp it is true for.
type digest struct {
	stamp
	sha256 [32]byte
	sha1   [20]byte
}

// NewDir returns the finder for a folder that has a repository in it. What is in the repositories is
// looked at when somebody asks for them.
func NewDir(root string) (*Dir, error) {
	d := &Dir{root: root, repos: map[string]*dirRepo{}}
	names, err := d.Names()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("folder of models %s has no folder ORG/NAME: %w", root, fs.ErrNotExist)
	}
	return d, nil
}

// Names returns the names of the repositories, sorted.
func (d *Dir) Names() ([]string, error) {
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, fmt.Errorf("folder of models: %w", err)
	}
	defer root.Close()
	paths, err := fs.Glob(root.FS(), "*/*")
	if err != nil {
		return nil, fmt.Errorf("folder of models: %w", err)
	}
	return slices.DeleteFunc(paths, func(p string) bool {
		info, err := root.Lstat(p)
		return err != nil || !info.IsDir() || manifest.ValidRepo(p) != nil
	}), nil
}

// Find implements [Finder].
func (d *Dir) Find(ctx context.Context, name string) (Repo, error) {
	if manifest.ValidRepo(name) != nil || !strings.Contains(name, "/") {
		return nil, fmt.Errorf("folder %q: %w", name, fs.ErrNotExist)
	}
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, fmt.Errorf("folder of models: %v", err) // its absence is not the repository's
	}
	defer root.Close()
	if err := checkFolder(root, name); err != nil {
		return nil, err
	}
	r := d.repo(name)
	select {
	case r.busy <- struct{}{}:
		defer func() { <-r.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	found, err := scan(root, name)
	if err != nil {
		return nil, err
	}
	if r.last == nil || !r.last.is(found) {
		if err := r.read(ctx, root, name, found); err != nil {
			return nil, err
		}
		r.last = r.snapshot(d.root, name, found)
	}
	return r.last, nil
}

func (d *Dir) repo(name string) *dirRepo {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	if r == nil {
		r = &dirRepo{busy: make(chan struct{}, 1), sums: map[string]digest{}}
		d.repos[name] = r
	}
	return r
}

// checkFolder reports whether name is two real directories.
func checkFolder(root *os.Root, name string) error {
	for _, p := range []string{path.Dir(name), name} {
		info, err := root.Lstat(p)
		switch {
		case err != nil:
			return fmt.Errorf("folder %s: %w", p, err)
		case info.Mode()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s is a symlink: only symlinks to files are followed", p)
		case !info.IsDir():
			return fmt.Errorf("folder %s: %w", p, fs.ErrNotExist)
		}
	}
	return nil
}

// foundFile is a file and what tells that it has not changed.
type foundFile struct {
	path string // within the repository
	stamp
}

func (f foundFile) lfs() bool {
	return f.size > 10_000_000 || strings.HasSuffix(f.path, ".safetensors") || strings.HasSuffix(f.path, ".bin")
}

// scan lists the repository's files in the order of their paths.
func scan(root *os.Root, name string) ([]foundFile, error) {
	var found []foundFile
	err := fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading the folder: %v", err)
		}
		rel := strings.TrimPrefix(p, name+"/")
		switch {
		case d.IsDir() && (rel == ".git" || rel == ".cache/huggingface"):
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		info, err := root.Stat(p) // of a symlink: where it leads
		switch {
		case err != nil && d.Type()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s: the symlink leads nowhere or out of the folder: %v", p, err)
		case err != nil:
			return fmt.Errorf("reading the folder: %v", err)
		case info.IsDir():
			return fmt.Errorf("%s is a symlink to a directory: only symlinks to files are followed", p)
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is not a file but %s", p, info.Mode().Type())
		}
		found = append(found, foundFile{path: rel, stamp: stamp{size: info.Size(), modified: info.ModTime()}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b foundFile) int { return cmp.Compare(a.path, b.path) })
	paths := make([]string, len(found))
	for i, f := range found {
		paths[i] = f.path
	}
	if err := manifest.ValidPaths(paths); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return found, nil
}

// read takes the digests that are missing. What is done when ctx ends is kept for the next time.
func (r *dirRepo) read(ctx context.Context, root *os.Root, name string, found []foundFile) error {
	missing := slices.DeleteFunc(slices.Clone(found), func(f foundFile) bool {
		known, ok := r.sums[f.path]
		return ok && known.stamp == f.stamp
	})
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex // of sums
	for _, f := range missing {
		g.Go(func() error {
			// A file that is begun is finished, however impatient the client: the next one gains.
			if ctx.Err() != nil {
				return ctx.Err()
			}
			sum, err := digestFile(root, name+"/"+f.path, f)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			r.sums[f.path] = sum
			return nil
		})
	}
	return g.Wait()
}

func digestFile(root *os.Root, p string, f foundFile) (digest, error) {
	body, err := root.Open(p)
	if err != nil {
		return digest{}, fmt.Errorf("reading %s: %v", p, err)
	}
	defer body.Close()
	sum := digest{stamp: f.stamp}
	if f.lfs() {
		sum.sha256, err = sumSHA256(body)
	} else {
		var b []byte
		b, err = io.ReadAll(io.LimitReader(body, f.size+1))
		sum.sha1 = GitSHA1(b)
	}
	if err != nil {
		return digest{}, fmt.Errorf("reading %s: %v", p, err)
	}
	return sum, unchanged(body, f.stamp)
}

// snapshot makes the repository of files whose digests are known.
func (r *dirRepo) snapshot(root, name string, found []foundFile) *snapshot {
	s := &snapshot{root: root, name: name}
	id := sha1.New()
	for _, f := range found {
		sum := r.sums[f.path]
		s.files = append(s.files, File{
			Path: f.path, Size: f.size, LFS: f.lfs(), GitSHA1: sum.sha1,
			SHA256: func() ([32]byte, error) { return sum.sha256, nil },
		})
		s.stamps = append(s.stamps, f.stamp)
		if f.modified.After(s.modified) {
			s.modified = f.modified
		}
		fmt.Fprintf(id, "%d %q %x %x\n", f.size, f.path, sum.sha1, sum.sha256)
	}
	s.commit = fmt.Sprintf("%x", id.Sum(nil))
	return s
}

// is reports whether the files are still those of the snapshot.
func (s *snapshot) is(found []foundFile) bool {
	return slices.EqualFunc(found, s.files, func(a foundFile, b File) bool { return a.path == b.Path }) &&
		slices.EqualFunc(found, s.stamps, func(a foundFile, b stamp) bool { return a.stamp == b })
}

func (s *snapshot) Name() string            { return s.name }
func (s *snapshot) Commit() string          { return s.commit }
func (s *snapshot) LastModified() time.Time { return s.modified }
func (s *snapshot) Files() []File           { return s.files }

// Open implements Repo. A file that has changed since its digest was taken is an error.
func (s *snapshot) Open(p string) (io.ReaderAt, error) {
	i := slices.IndexFunc(s.files, func(f File) bool { return f.Path == p })
	if i < 0 {
		return nil, fmt.Errorf("%s: %w", p, fs.ErrNotExist)
	}
	f, err := os.OpenInRoot(s.root, s.name+"/"+p)
	if err != nil {
		return nil, err
	}
	if err := unchanged(f, s.stamps[i]); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func unchanged(f *os.File, want stamp) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if got := (stamp{size: info.Size(), modified: info.ModTime()}); got != want {
		return fmt.Errorf("%s has changed on disk since it was looked at", f.Name())
	}
	return nil
}
