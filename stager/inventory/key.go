package inventory

import (
	"net/url"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

const partsPrefix = manifest.Private + "parts/"

// kind is what a key below .headstart/ is.
type kind int

const (
	foreign kind = iota // not of headstart's making: it is left alone
	commitKey
	orderKey
	refKey
	partKey
	tempKey // what a directory bucket writes before it has its name
)

// parse reads a key below .headstart/. name is the ref of a refKey.
func parse(key string) (k kind, m manifest.Model, name string) {
	rest, ok := strings.CutPrefix(key, manifest.Private)
	if !ok {
		return foreign, m, ""
	}
	if part, ok := strings.CutPrefix(key, partsPrefix); ok {
		return parsePart(part)
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return foreign, m, ""
	}
	dir, name := rest[:i], rest[i+1:]
	if repo, ok := strings.CutSuffix(dir, "/refs"); ok {
		ref, err := url.PathUnescape(name)
		if err != nil || manifest.ValidRepo(repo) != nil || manifest.ValidRevision(ref) != nil || manifest.RefKey(repo, ref) != key {
			return foreign, m, ""
		}
		return refKey, manifest.Model{Repo: repo}, ref
	}
	k = commitKey
	commit, ok := strings.CutSuffix(name, ".json")
	if !ok {
		k = orderKey
		commit, ok = strings.CutSuffix(name, ".order")
	}
	if !ok || !manifest.IsCommit(commit) || manifest.ValidRepo(dir) != nil {
		return foreign, m, ""
	}
	return k, manifest.Model{Repo: dir, Commit: commit}, ""
}

// parsePart reads what follows .headstart/parts/: [org/]name/commit/… The directories below a commit have
// 32 digits, so that none of them looks like a commit itself.
func parsePart(part string) (kind, manifest.Model, string) {
	if strings.HasPrefix(part, "put-") && !strings.Contains(part, "/") {
		return tempKey, manifest.Model{}, ""
	}
	s := strings.SplitN(part, "/", 4)
	for _, at := range []int{2, 1} {
		if len(s) <= at+1 || !manifest.IsCommit(s[at]) {
			continue
		}
		m := manifest.Model{Repo: strings.Join(s[:at], "/"), Commit: s[at]}
		if manifest.ValidRepo(m.Repo) == nil {
			return partKey, m, ""
		}
	}
	return foreign, manifest.Model{}, ""
}

// commitOf reads the key of an object of repo: the commit that it is below, "" for none.
func commitOf(repo, key string) string {
	rest, ok := strings.CutPrefix(key, repo+"/")
	commit, path, found := strings.Cut(rest, "/")
	if !ok || !found || !manifest.IsCommit(commit) || manifest.ValidPath(path) != nil {
		return ""
	}
	return commit
}
