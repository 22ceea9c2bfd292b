package hf

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// maxEntries bounds a listing: the Hub recommends no more than 100,000 files a repository.
const maxEntries = 200_000

// maxPages bounds it where pages have nothing that counts; the Hub's have 1000 entries.
const maxPages = 2000

// entry is a line of the Hub's tree.
type entry struct {
	Type string      `json:"type"`
	OID  string      `json:"oid"`
	Size json.Number `json:"size"`
	Path string      `json:"path"`
	LFS  *struct {
		OID  string      `json:"oid"`
		Size json.Number `json:"size"`
	} `json:"lfs"`
}

// Files makes sure that the repository's files may be read, and lists it at m's commit. A gated
// repository's listing is public and may be long, so access is what is asked for first; a Hub without that
// question tells by the largest file.
func (s *Source) Files(ctx context.Context, m manifest.Model) ([]stager.RemoteFile, error) {
	at := ask{repo: m.Repo, revision: m.Commit}
	if err := s.mayRead(ctx, at); err != nil {
		return nil, err
	}
	address := s.Endpoint + "/api/models/" + m.Repo + "/tree/" + m.Commit + "?recursive=true&expand=false"
	var files []stager.RemoteFile
	seen := make(map[string]bool)
	entries := 0
	for address != "" {
		if seen[address] || len(seen) == maxPages || entries > maxEntries {
			return nil, stager.Fail(manifest.ErrInvalid, "the listing of %s has no end", m.Repo)
		}
		seen[address] = true
		var page []entry
		header, err := s.getJSON(ctx, address, at, &page)
		if err != nil {
			return nil, err
		}
		entries += len(page)
		for _, e := range page {
			f, isFile, err := e.file(m)
			if err != nil {
				return nil, err
			}
			if isFile {
				files = append(files, f)
			}
		}
		if address, err = s.next(header.Values("Link"), m); err != nil {
			return nil, err
		}
	}
	if err := s.described.check(m, files); err != nil {
		return nil, err
	}
	return files, s.access(ctx, m, files)
}

// mayRead asks whether this token's user may have the repository's files. A mirror may not know the
// question: what is no answer to it is passed over.
func (s *Source) mayRead(ctx context.Context, at ask) error {
	r, data, err := s.call(ctx, http.MethodGet, s.Endpoint+"/api/models/"+at.repo+"/auth-check", at)
	if err != nil {
		return err
	}
	switch {
	case r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusTooManyRequests,
		r.StatusCode == http.StatusNotFound && r.Header.Get("X-Error-Code") != "":
		return s.refused(r, data, at)
	}
	return nil
}

// access asks for the largest file, whose bytes are what it is about.
func (s *Source) access(ctx context.Context, m manifest.Model, files []stager.RemoteFile) error {
	var largest *stager.RemoteFile
	for i := range files {
		if largest == nil || files[i].Size > largest.Size {
			largest = &files[i]
		}
	}
	if largest == nil {
		return nil
	}
	_, err := s.locate(ctx, m, *largest)
	return err
}

var gitSHA1 = regexp.MustCompile(`^[0-9a-f]{40}$`)

// file reads an entry strictly. What is wrong with it is said with its name.
func (e entry) file(m manifest.Model) (stager.RemoteFile, bool, error) {
	fail := func(why string) (stager.RemoteFile, bool, error) {
		return stager.RemoteFile{}, false, stager.Fail(manifest.ErrInvalid, "the listing of %s has an entry %.100q: %s", m.Repo, e.Path, why)
	}
	if e.Type == "directory" {
		return stager.RemoteFile{}, false, nil // the files in it name it
	}
	if e.Type != "file" {
		return fail("it is a " + strconv.Quote(clip(e.Type, 40)) + ", neither a file nor a directory")
	}
	if err := manifest.ValidPath(e.Path); err != nil {
		return fail(err.Error())
	}
	size, err := strconv.ParseInt(e.Size.String(), 10, 64)
	if err != nil || size < 0 {
		return fail("its size is " + strconv.Quote(clip(e.Size.String(), 40)))
	}
	f := stager.RemoteFile{Path: e.Path, Size: size}
	if e.LFS == nil {
		if !gitSHA1.MatchString(e.OID) {
			return fail("its oid is not a git sha1")
		}
		f.GitSHA1 = e.OID
		return f, true, nil
	}
	digest, err := manifest.ParseDigest(e.LFS.OID)
	if err != nil {
		return fail("its LFS oid is not a sha256")
	}
	if e.LFS.Size.String() != e.Size.String() {
		return fail("it has two sizes, " + clip(e.Size.String(), 40) + " and " + clip(e.LFS.Size.String(), 40))
	}
	f.SHA256 = &digest
	return f, true, nil
}

var nextLink = regexp.MustCompile(`<([^<>]+)>\s*;\s*rel="?next"?`)

// next returns the address of the listing's next page, which must be of the Hub's own origin.
func (s *Source) next(links []string, m manifest.Model) (string, error) {
	for _, l := range links {
		found := nextLink.FindStringSubmatch(l)
		if found == nil {
			continue
		}
		u, err := url.Parse(found[1])
		if err != nil || !s.own(u) {
			return "", stager.Fail(manifest.ErrInvalid, "the listing of %s goes on at another host than %s", m.Repo, s.Endpoint)
		}
		return u.String(), nil
	}
	return "", nil
}
