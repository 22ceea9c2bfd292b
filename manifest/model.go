package manifest

import (
	"fmt"
	"regexp"
	"strings"
)

// Model is the identity of a model's bytes: a repository at a commit.
// A branch name never stands here; see [Reference] for what a person types.
type Model struct {
	Repo   string // "google/gemma-3-4b-it"; a legacy Hub name ("gpt2") has no owner
	Commit string // 40 (git, or what names a folder's content) or 64 lower-case hex digits
}

// String returns "repo@commit".
func (m Model) String() string { return m.Repo + "@" + m.Commit }

// Object returns the key of the object that holds the repository's file at path,
// relative to the bucket URL's own prefix.
func (m Model) Object(path string) string { return m.Repo + "/" + m.Commit + "/" + path }

// Key returns the key of the model's manifest. Its existence is the commit of the model.
func (m Model) Key() string { return Private + m.Repo + "/" + m.Commit + ".json" }

// OrderKey returns the key of the order in which readers were seen to want the model's chunks. There need
// not be one.
func (m Model) OrderKey() string { return Private + m.Repo + "/" + m.Commit + ".order" }

// Private is the prefix of the keys that are headstart's own.
const Private = ".headstart/"

// RefKey returns the key of the object that names the commit a ref of repo points to:
// its content is the commit, 40 or 64 hex digits and no newline.
func RefKey(repo, ref string) string { return Private + repo + "/refs/" + escape(ref) }

// escape makes one path segment of a ref, so that "refs/pr/1" and "refs%2Fpr%2F1" stay two names.
func escape(ref string) string {
	return strings.NewReplacer("%", "%25", "/", "%2F").Replace(ref)
}

// Validate reports what is wrong with the identity.
func (m Model) Validate() error { return mark(m.check()) }

func (m Model) check() error {
	if err := checkRepo(m.Repo); err != nil {
		return err
	}
	if !commitPattern.MatchString(m.Commit) {
		return fmt.Errorf("commit %q is not 40 or 64 lower-case hex digits", clip(m.Commit))
	}
	return nil
}

var (
	commitPattern = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	repoPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$`)
)

// IsCommit reports whether s has the form of a commit.
func IsCommit(s string) bool { return commitPattern.MatchString(s) }

// ValidRepo reports whether repo has the form "owner/name" or "name" that the Hub allows:
// letters, digits, '.', '_' and '-', at most 96 characters each, none beginning with '.' or '-',
// no ".." and no "--".
func ValidRepo(repo string) error { return mark(checkRepo(repo)) }

func checkRepo(repo string) error {
	parts := strings.Split(repo, "/")
	ok := len(parts) <= 2 && !strings.Contains(repo, "..") && !strings.Contains(repo, "--")
	for _, p := range parts {
		ok = ok && repoPattern.MatchString(p)
	}
	if !ok {
		return fmt.Errorf("model %q is not a name of the form org/name", clip(repo))
	}
	// These would share their keys with a legacy repository's refs and with the parts of uploads.
	if parts[len(parts)-1] == "refs" || parts[0] == "parts" {
		return fmt.Errorf("model %q: headstart cannot stage a repository of this name, its keys in the bucket mean something else", clip(repo))
	}
	return nil
}

// Reference is what a person names a model by. At most one of Revision and Pin is set;
// with neither, the default ref "main" is meant.
type Reference struct {
	Repo     string
	Revision string // a branch, a tag or a commit
	// Pin is the sha256 of the manifest's bytes: that manifest or an error, and so those files, as
	// far as the reader's check of the files goes.
	Pin Digest
}

// ParseReference reads "org/name", "org/name@revision" or "org/name@sha256:<64 hex>".
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	return r, mark(err)
}

func parseReference(s string) (Reference, error) {
	repo, rev, found := strings.Cut(s, "@")
	if err := checkRepo(repo); err != nil {
		return Reference{}, err
	}
	r := Reference{Repo: repo}
	if !found {
		return r, nil
	}
	if hex, ok := strings.CutPrefix(rev, "sha256:"); ok {
		d, err := ParseDigest(hex)
		if err != nil {
			return Reference{}, fmt.Errorf("pin of %s: %w", repo, err)
		}
		if d == (Digest{}) { // it would mean "no pin"
			return Reference{}, fmt.Errorf("pin of %s: no manifest has a sha256 of zeros", repo)
		}
		r.Pin = d
		return r, nil
	}
	if err := checkRevision(rev); err != nil {
		return Reference{}, fmt.Errorf("model %s: %w", repo, err)
	}
	r.Revision = rev
	return r, nil
}

// String returns the form that [ParseReference] reads.
func (r Reference) String() string {
	switch {
	case r.Pin != Digest{}:
		return r.Repo + "@sha256:" + r.Pin.String()
	case r.Revision != "":
		return r.Repo + "@" + r.Revision
	}
	return r.Repo
}

// ValidRevision reports whether rev can be the name of a git ref or a commit:
// 1 to 255 bytes, no space, no control character and none of git's forbidden ones.
func ValidRevision(rev string) error { return mark(checkRevision(rev)) }

func checkRevision(rev string) error {
	bad := rev == "" || len(rev) > 255 || strings.Contains(rev, "..") || strings.Contains(rev, "//") ||
		strings.HasPrefix(rev, "/") || strings.HasSuffix(rev, "/") || strings.HasPrefix(rev, "-") ||
		strings.ContainsFunc(rev, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\@`, r) })
	if bad {
		return fmt.Errorf("revision %q is not the name of a branch, a tag or a commit", clip(rev))
	}
	return nil
}

// clip bounds a hostile string before it goes into a message.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
