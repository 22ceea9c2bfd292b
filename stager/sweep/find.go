package sweep

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// Find plans the removal of the commit that ref means, or of all commits of its repository. The error wraps
// fs.ErrNotExist where there is none.
func Find(ctx context.Context, b Bucket, ref manifest.Reference, all bool) (Plan, error) {
	// The whole bucket is read: what stays is what any manifest names.
	inv, err := inventory.Read(ctx, b, "")
	if err != nil {
		return nil, err
	}
	if err := inv.Orphans(ctx, b, ref.Repo); err != nil {
		return nil, err
	}
	begun, err := readNotes(ctx, b, inv)
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(slices.Clone(inv.Commits), func(c *inventory.Commit) bool {
		return c.Model.Repo != ref.Repo || !all && !means(ref, c, inv, begun[c.Model])
	})
	for _, c := range found {
		if newer, ok := errors.AsType[*manifest.VersionError](c.Err); ok {
			return nil, stager.Fail(newer, "%s is left as it is: %v", c.Model, newer)
		}
	}
	if err := listObjects(ctx, b, found); err != nil {
		return nil, err
	}
	p := removal(inv, begun, found)
	for _, i := range dangling(inv) {
		if r := i.Refs[0]; r.Repo == ref.Repo && (all || ref.Pin == manifest.Digest{} && r.Name == refName(ref)) {
			p = append(p, i)
		}
	}
	if len(p) == 0 {
		return nil, stager.Fail(fs.ErrNotExist, "%s is not staged in %s: see headstart ls %s", ref, b, ref.Repo)
	}
	return p, nil
}

func refName(ref manifest.Reference) string { return cmp.Or(ref.Revision, "main") }

// means reports whether ref names the commit, or named it before a removal that did not end.
func means(ref manifest.Reference, c *inventory.Commit, inv *inventory.Inventory, begun *note) bool {
	if ref.Pin != (manifest.Digest{}) {
		return c.Manifest != nil && c.Sum == ref.Pin || begun != nil && begun.Pin == ref.Pin.String()
	}
	if ref.Revision == c.Model.Commit {
		return true
	}
	named := func(r inventory.Ref) bool { return r.Repo == ref.Repo && r.Name == refName(ref) }
	if slices.ContainsFunc(inv.Refs, named) {
		return slices.ContainsFunc(c.Refs, named)
	}
	return begun != nil && slices.Contains(begun.Refs, refName(ref))
}

// Garbage plans the removal of what nobody needs any more.
func Garbage(ctx context.Context, b Bucket, rules Rules) (Plan, error) {
	inv, err := inventory.Read(ctx, b, "")
	if err != nil {
		return nil, err
	}
	// Only below repositories that headstart has written for: others may have folders of this form, too.
	for _, repo := range inv.Repos() {
		if err := inv.Orphans(ctx, b, repo); err != nil {
			return nil, err
		}
	}
	begun, err := readNotes(ctx, b, inv)
	if err != nil {
		return nil, err
	}
	going := slices.DeleteFunc(slices.Clone(inv.Commits), func(c *inventory.Commit) bool { return !unreferenced(c, rules) })
	if err := listObjects(ctx, b, going); err != nil {
		return nil, err
	}
	return garbage(inv, begun, rules), nil
}

// listObjects lists the files of commits that are staged: the others' are known.
func listObjects(ctx context.Context, b Bucket, commits []*inventory.Commit) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, c := range commits {
		if c.Staged() {
			group.Go(func() (err error) {
				c.Objects, err = inventory.Objects(ctx, b, c.Model)
				return err
			})
		}
	}
	return group.Wait()
}
