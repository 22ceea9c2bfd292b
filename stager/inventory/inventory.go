// Package inventory says what is in a bucket: which commits of which models are staged, which refs name
// them, and what stages left that have not ended.
//
// It reads the listing of .headstart/, each manifest and each ref, and for a commit that is not staged the
// listing of its objects. The bucket is hostile: a key that headstart would not make is passed over, and a
// manifest that is damaged is shown as such.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// Bucket is what is read. Every [stager.Store] is one.
type Bucket interface {
	Get(ctx context.Context, key string, limit int64) (data []byte, version int64, err error)
	List(ctx context.Context, prefix string) iter.Seq2[stager.Object, error]
}

// Inventory is what was in a bucket when it was read.
type Inventory struct {
	Commits []*Commit       // in the order of repositories and commits; those with a manifest, parts or objects
	Refs    []Ref           // all, in the order of repositories and names
	Temps   []stager.Object // what a directory bucket was writing
}

// Commit is a model in the bucket, or what there is of one.
type Commit struct {
	Model    manifest.Model
	Object   stager.Object      // the manifest's; its Key is "" where there is none
	Manifest *manifest.Manifest // nil where there is none, or Err says what is wrong with it
	Sum      manifest.Digest    // of the manifest's bytes
	Err      error
	Refs     []Ref
	Parts    []stager.Object // kept for a stage that has not ended
	Objects  []stager.Object // files; listed only where there is no manifest
	Order    stager.Object   // the learnt order of its chunks; its Key is "" where there is none
}

// Ref is a branch or a tag.
type Ref struct {
	Repo, Name string
	Commit     string // "" where it names none
	Object     stager.Object
}

// Staged reports whether a reader finds the commit.
func (c *Commit) Staged() bool { return c.Object.Key != "" }

// Held returns the bytes in the bucket of a commit that is not staged.
func (c *Commit) Held() (n int64) {
	for _, o := range slices.Concat(c.Parts, c.Objects) {
		n += o.Size
	}
	return n
}

// Changed returns when the commit was staged, or when something was last written for it.
func (c *Commit) Changed() time.Time {
	if c.Staged() {
		return c.Object.Created
	}
	var last time.Time
	for _, o := range slices.Concat(c.Parts, c.Objects) {
		if o.Created.After(last) {
			last = o.Created
		}
	}
	return last
}

// requests is how many manifests and refs are read at once.
const requests = 16

// Read reads what the bucket has of repo, "" being all.
func Read(ctx context.Context, b Bucket, repo string) (*Inventory, error) {
	prefixes := []string{manifest.Private}
	if repo != "" {
		prefixes = []string{manifest.Private + repo + "/", partsPrefix + repo + "/"}
	}
	r := &reading{bucket: b, commits: make(map[manifest.Model]*Commit)}
	for _, p := range prefixes {
		for o, err := range b.List(ctx, p) {
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(o.Key, p) {
				return nil, stager.Fail(manifest.ErrInvalid, "the bucket lists %.100q below %q", o.Key, p)
			}
			r.add(o, repo)
		}
	}
	if err := r.readAll(ctx); err != nil {
		return nil, err
	}
	return r.inventory(), nil
}

// reading is an Inventory that is not whole yet.
type reading struct {
	bucket  Bucket
	commits map[manifest.Model]*Commit
	refs    []*Ref
	temps   []stager.Object
}

func (r *reading) add(o stager.Object, repo string) {
	k, m, name := parse(o.Key)
	if repo != "" && m.Repo != repo {
		return // of org/name, where name is asked for
	}
	switch k {
	case commitKey:
		r.commit(m).Object = o
	case orderKey:
		r.commit(m).Order = o
	case partKey:
		c := r.commit(m)
		c.Parts = append(c.Parts, o)
	case refKey:
		r.refs = append(r.refs, &Ref{Repo: m.Repo, Name: name, Object: o})
	case tempKey:
		r.temps = append(r.temps, o)
	case foreign:
	}
}

func (r *reading) commit(m manifest.Model) *Commit {
	c := r.commits[m]
	if c == nil {
		c = &Commit{Model: m}
		r.commits[m] = c
	}
	return c
}

// readAll reads what was listed, and lists what is not staged.
func (r *reading) readAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(requests)
	for _, c := range r.commits {
		group.Go(func() error {
			if c.Staged() {
				return c.read(ctx, r.bucket)
			}
			var err error
			c.Objects, err = Objects(ctx, r.bucket, c.Model)
			return err
		})
	}
	for _, ref := range r.refs {
		group.Go(func() error {
			data, _, err := r.bucket.Get(ctx, ref.Object.Key, 100)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, manifest.ErrInvalid) {
				return nil // gone meanwhile, or too long for a commit
			}
			if err == nil && manifest.IsCommit(string(data)) {
				ref.Commit = string(data)
			}
			return err
		})
	}
	return group.Wait()
}

func (c *Commit) read(ctx context.Context, b Bucket) error {
	raw, _, err := b.Get(ctx, c.Object.Key, manifest.MaxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Object = stager.Object{} // removed meanwhile
		return nil
	case errors.Is(err, manifest.ErrInvalid):
		c.Err = err // too long
		return nil
	case err != nil:
		return err
	}
	m, err := manifest.Parse(raw)
	if err == nil && m.Model != c.Model {
		err = stager.Fail(manifest.ErrInvalid, "the manifest of %s", m.Model)
	}
	if err != nil {
		c.Err = err
		return nil
	}
	c.Manifest, c.Sum = m, manifest.Sum(raw)
	return nil
}

// Objects lists the files below a commit. What no manifest could name is not among them.
func Objects(ctx context.Context, b Bucket, m manifest.Model) ([]stager.Object, error) {
	return under(ctx, b, m.Object(""), m.Repo)
}

// Parts lists what is kept for a stage of m.
func Parts(ctx context.Context, b Bucket, m manifest.Model) ([]stager.Object, error) {
	return under(ctx, b, PartsOf(m), "")
}

// PartsOf is the prefix of what is kept for a stage of m.
func PartsOf(m manifest.Model) string { return partsPrefix + m.Repo + "/" + m.Commit + "/" }

func under(ctx context.Context, b Bucket, prefix, repo string) ([]stager.Object, error) {
	var objects []stager.Object
	for o, err := range b.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", prefix, err)
		}
		if strings.HasPrefix(o.Key, prefix) && (repo == "" || commitOf(repo, o.Key) != "") {
			objects = append(objects, o)
		}
	}
	return objects, nil
}

// Orphans lists the files of repo whose commits are not staged: those that the Inventory knows by their
// parts get nothing new by it, those of which nothing but files is left do.
func (inv *Inventory) Orphans(ctx context.Context, b Bucket, repo string) error {
	known := make(map[string]*Commit)
	for _, c := range inv.Commits {
		if c.Model.Repo == repo {
			known[c.Model.Commit] = c
		}
	}
	for o, err := range b.List(ctx, repo+"/") {
		if err != nil {
			return fmt.Errorf("listing %s/: %w", repo, err)
		}
		commit := commitOf(repo, o.Key)
		c := known[commit]
		if commit == "" || c != nil && (c.Staged() || len(c.Parts) > 0) {
			continue
		}
		if c == nil {
			c = &Commit{Model: manifest.Model{Repo: repo, Commit: commit}}
			known[commit] = c
			inv.Commits = append(inv.Commits, c)
		}
		c.Objects = append(c.Objects, o)
	}
	inv.sort()
	return nil
}

// Repos returns the repositories that headstart has written for, sorted.
func (inv *Inventory) Repos() []string {
	names := make(map[string]bool)
	for _, c := range inv.Commits {
		names[c.Model.Repo] = true
	}
	for _, r := range inv.Refs {
		names[r.Repo] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func (r *reading) inventory() *Inventory {
	inv := &Inventory{Temps: r.temps}
	for _, ref := range r.refs {
		inv.Refs = append(inv.Refs, *ref)
		if c := r.commits[manifest.Model{Repo: ref.Repo, Commit: ref.Commit}]; c != nil {
			c.Refs = append(c.Refs, *ref)
		}
	}
	for _, c := range r.commits {
		if c.Staged() || len(c.Parts)+len(c.Objects) > 0 {
			inv.Commits = append(inv.Commits, c)
		}
	}
	inv.sort()
	return inv
}

func (inv *Inventory) sort() {
	byName := func(a, b Ref) int { return strings.Compare(a.Object.Key, b.Object.Key) }
	slices.SortFunc(inv.Refs, byName)
	slices.SortFunc(inv.Commits, func(a, b *Commit) int { return strings.Compare(a.Model.String(), b.Model.String()) })
	for _, c := range inv.Commits {
		slices.SortFunc(c.Refs, byName)
	}
}
