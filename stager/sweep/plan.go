package sweep

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// Plan is what is to go, in the order of repositories and commits.
type Plan []Item

// Item is a commit, or what is left of one, that goes as a whole.
type Item struct {
	Why      Reason
	Model    manifest.Model // zero for a Temporary
	Refs     []inventory.Ref
	Manifest stager.Object // Key is "" where there is none
	Objects  []stager.Object
	Parts    []stager.Object // all that is kept below .headstart/parts/ for the commit, and its learnt order
	Stay     int             // objects below the commit that do not go with it
	pin      manifest.Digest // of the manifest
}

// Reason is why an Item goes.
type Reason string

// The reasons.
const (
	Asked        Reason = "asked for"
	Unreferenced Reason = "no ref names it"
	Unfinished   Reason = "a stage that did not end"
	Finished     Reason = "what a stage has left that did end"
	Dangling     Reason = "a ref of a commit that is not staged"
	Temporary    Reason = "the temporary file of a process that was killed"
)

// Bytes returns the size of what goes.
func (i Item) Bytes() (n int64) {
	for _, o := range i.all() {
		n += o.Size
	}
	return n
}

// Count returns the number of objects that go.
func (i Item) Count() int { return len(i.all()) }

func (i Item) all() []stager.Object {
	all := slices.Concat(i.Objects, i.Parts)
	for _, r := range i.Refs {
		all = append(all, r.Object)
	}
	if i.Manifest.Key != "" {
		all = append(all, i.Manifest)
	}
	return all
}

// Bytes returns the size of what goes.
func (p Plan) Bytes() (n int64) {
	for _, i := range p {
		n += i.Bytes()
	}
	return n
}

// removal plans the removal of commits with everything that is theirs and no other manifest's. It is pure.
func removal(inv *inventory.Inventory, notes notes, commits []*inventory.Commit) Plan {
	going := make(map[manifest.Model]bool, len(commits))
	for _, c := range commits {
		going[c.Model] = true
	}
	stay := staying(inv, going)
	var p Plan
	for _, c := range commits {
		p = append(p, stay.spare(whole(c, notes.names(c.Model), Asked)))
	}
	return p
}

// Rules say what Garbage takes for garbage.
type Rules struct {
	Before       time.Time // nothing that was written later goes
	Unreferenced bool      // commits that no ref names go, too
}

// garbage plans the removal of what nobody needs any more. A stage that did not end goes only when the last
// thing that was written for it is old: it may be another one's that is running. It is pure.
func garbage(inv *inventory.Inventory, notes notes, rules Rules) Plan {
	going := make(map[manifest.Model]bool)
	for _, c := range inv.Commits {
		if unreferenced(c, rules) {
			going[c.Model] = true
		}
	}
	stay := staying(inv, going)
	var p Plan
	for _, c := range inv.Commits {
		switch {
		case going[c.Model]:
			p = append(p, stay.spare(whole(c, notes.names(c.Model), Unreferenced)))
		case !allOld(c.Parts, rules) || !c.Staged() && !allOld(c.Objects, rules):
		case c.Staged():
			p = append(p, Item{Why: Finished, Model: c.Model, Parts: c.Parts}) // if there are any
		default:
			p = append(p, stay.spare(whole(c, notes.names(c.Model), Unfinished)))
		}
	}
	for _, i := range dangling(inv) {
		if old(i.Refs[0].Object, rules) {
			p = append(p, i)
		}
	}
	for _, o := range inv.Temps {
		if old(o, rules) {
			p = append(p, Item{Why: Temporary, Parts: []stager.Object{o}})
		}
	}
	p = slices.DeleteFunc(p, func(i Item) bool { return i.Count() == 0 })
	slices.SortStableFunc(p, func(a, b Item) int { return cmp.Compare(a.Model.String(), b.Model.String()) })
	return p
}

func unreferenced(c *inventory.Commit, rules Rules) bool {
	return rules.Unreferenced && c.Manifest != nil && len(c.Refs) == 0 && old(c.Object, rules) && allOld(c.Parts, rules)
}

// dangling plans the removal of refs whose commit is not there in any form: a stage writes the ref last.
func dangling(inv *inventory.Inventory) (p Plan) {
	there := make(map[manifest.Model]bool)
	for _, c := range inv.Commits {
		there[c.Model] = true
	}
	for _, r := range inv.Refs {
		m := manifest.Model{Repo: r.Repo, Commit: r.Commit}
		if r.Commit != "" && !there[m] {
			p = append(p, Item{Why: Dangling, Model: m, Refs: []inventory.Ref{r}})
		}
	}
	return p
}

func old(o stager.Object, rules Rules) bool {
	return !o.Created.IsZero() && o.Created.Before(rules.Before)
}

func allOld(objects []stager.Object, rules Rules) bool {
	return !slices.ContainsFunc(objects, func(o stager.Object) bool { return !old(o, rules) })
}

// whole is all that there is of a commit. Of the objects below it those go that its manifest names, or that
// the note of a removal that was begun does. Where there is neither, all do that could be files of a model.
func whole(c *inventory.Commit, names map[string]bool, why Reason) Item {
	i := Item{Why: why, Model: c.Model, Refs: c.Refs, Manifest: c.Object, Parts: c.Parts, pin: c.Sum}
	if c.Manifest != nil {
		names = make(map[string]bool, len(c.Manifest.Files))
		for j := range c.Manifest.Files {
			names[c.Model.Object(c.Manifest.Files[j].Path)] = true
		}
	}
	for _, o := range c.Objects {
		if names == nil || names[o.Key] {
			i.Objects = append(i.Objects, o)
		} else {
			i.Stay++
		}
	}
	if c.Order.Key != "" { // it goes with the last, as parts do: nobody looks at it without a manifest
		i.Parts = append(slices.Clone(c.Parts), c.Order)
	}
	return i
}

// kept is what must stay, whatever a plan says.
type kept struct {
	keys     map[string]bool // manifests, and the files that they name
	prefixes []string        // of commits whose manifests are no good: nobody knows what they name
}

func staying(inv *inventory.Inventory, going map[manifest.Model]bool) kept {
	k := kept{keys: make(map[string]bool)}
	for _, c := range inv.Commits {
		if !c.Staged() || going[c.Model] {
			continue
		}
		k.keys[c.Object.Key] = true
		if c.Manifest == nil {
			k.prefixes = append(k.prefixes, c.Model.Object(""))
			continue
		}
		for i := range c.Manifest.Files {
			k.keys[c.Model.Object(c.Manifest.Files[i].Path)] = true
		}
	}
	return k
}

// spare takes out of an item what must stay. The names of models can be such that a file of the one is also
// below a commit of the other.
func (k kept) spare(i Item) Item {
	before := len(i.Objects)
	i.Objects = slices.DeleteFunc(slices.Clone(i.Objects), func(o stager.Object) bool {
		return k.keys[o.Key] || slices.ContainsFunc(k.prefixes, func(p string) bool { return strings.HasPrefix(o.Key, p) })
	})
	i.Stay += before - len(i.Objects)
	return i
}
