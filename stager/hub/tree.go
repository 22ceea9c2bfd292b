package hub

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// entry is a file or a directory in the tree.
type entry struct {
	Type     string         `json:"type"` // "file" or "directory"
	OID      string         `json:"oid"`  // git's: of an LFS file the pointer's
	Size     json.Number    `json:"size"` // bytes, of an LFS file the real ones
	Path     string         `json:"path"`
	LFS      *lfs           `json:"lfs,omitempty"`
	XetHash  string         `json:"xetHash,omitempty"`
	Commit   *lastCommit    `json:"lastCommit,omitempty"`
	Security *securityState `json:"securityFileStatus,omitempty"`
}

type lfs struct {
	OID         string      `json:"oid"` // sha256
	Size        json.Number `json:"size"`
	PointerSize int         `json:"pointerSize"`
}

type lastCommit struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Date  string `json:"date"`
}

type securityState struct {
	Status string `json:"status"`
}

// listing returns the repository's files, in the order of their paths, with the lies that the
// request's faults ask for.
func (s *Server) listing(r *http.Request, repo Repo) ([]entry, error) {
	files := repo.Files()
	entries := make([]entry, len(files))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0)) // a digest that nobody asked for before may take seconds
	for i, f := range files {
		g.Go(func() (err error) {
			if entries[i], err = fileEntry(f); err != nil {
				return err
			}
			entries[i].XetHash, err = s.xetHash(r.Context(), repo, &f)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return faultsOf(r).inListing(entries), nil
}

func fileEntry(f File) (entry, error) {
	size := json.Number(strconv.FormatInt(f.Size, 10))
	e := entry{Type: "file", OID: fmt.Sprintf("%x", f.GitSHA1), Size: size, Path: f.Path}
	if !f.LFS {
		return e, nil
	}
	sum, err := f.SHA256()
	if err != nil {
		return e, fmt.Errorf("digest of %s: %w", f.Path, err)
	}
	text := pointer(sum, f.Size)
	e.OID = fmt.Sprintf("%x", GitSHA1(text))
	e.LFS = &lfs{OID: fmt.Sprintf("%x", sum), Size: size, PointerSize: len(text)}
	return e, nil
}

// withDirectories adds the directories that the files are in.
func withDirectories(entries []entry) []entry {
	seen := map[string]bool{"": true, ".": true, "/": true}
	for _, e := range entries {
		for dir := path.Dir(e.Path); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			oid := sha1.Sum([]byte("tree " + dir)) // not git's, but as stable and as opaque
			entries = append(entries, entry{Type: "directory", OID: fmt.Sprintf("%x", oid), Size: "0", Path: dir})
		}
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return entries
}

// below keeps what is in dir ("": the root), at any depth when recursive.
func below(entries []entry, dir string, recursive bool) []entry {
	return slices.DeleteFunc(entries, func(e entry) bool {
		rest, ok := e.Path, true
		if dir != "" {
			rest, ok = strings.CutPrefix(e.Path, dir+"/")
		}
		return !ok || (!recursive && strings.Contains(rest, "/"))
	})
}

// tree answers with one page of the files and directories at a revision.
func (s *Server) tree(c *call, rev, dir string) error {
	repo, done, err := s.at(c, rev, false)
	if err != nil || done {
		return err
	}
	entries, err := s.listing(c.r, repo)
	if err != nil {
		return err
	}
	query := c.r.URL.Query()
	entries = below(withDirectories(entries), dir, strings.EqualFold(query.Get("recursive"), "true"))
	if dir != "" && len(entries) == 0 {
		return noEntry(dir, repo.Commit())
	}
	expand := strings.EqualFold(query.Get("expand"), "true")
	limit := s.pageSize(query.Get("limit"), expand)
	if cursor := query.Get("cursor"); cursor != "" {
		last, err := parseCursor(cursor)
		if err != nil {
			return err
		}
		entries = slices.DeleteFunc(entries, func(e entry) bool { return e.Path <= last })
	}
	if len(entries) > limit {
		entries = entries[:limit]
		s.linkNext(c, repo, entries[limit-1].Path, limit)
	}
	s.writeEntries(c, repo, entries, expand)
	return nil
}

func (s *Server) writeEntries(c *call, repo Repo, entries []entry, expand bool) {
	if expand {
		commit := &lastCommit{ID: repo.Commit(), Title: "Upload", Date: repo.LastModified().UTC().Format(timeFormat)}
		for i := range entries {
			entries[i].Commit, entries[i].Security = commit, &securityState{Status: "safe"}
		}
	}
	if entries == nil {
		entries = []entry{}
	}
	writeJSON(c.w, http.StatusOK, entries)
}

// pageSize returns how many entries a page has: what the client asks for, within what is allowed.
func (s *Server) pageSize(asked string, expand bool) int {
	size := s.cfg.PageSize
	if size == 0 {
		size = 1000
		if expand {
			size = 50
		}
	}
	if n, err := strconv.Atoi(asked); err == nil && n > 0 {
		return min(n, size)
	}
	return size
}

type cursor struct {
	FileName string `json:"file_name"`
	TreeOID  string `json:"tree_oid"`
}

// linkNext sets the header that names the next page. Clients follow it as it stands: absolute.
func (s *Server) linkNext(c *call, repo Repo, last string, limit int) {
	raw, err := json.Marshal(cursor{FileName: last, TreeOID: repo.Commit()})
	if err != nil {
		panic("hub: a path that JSON cannot hold: " + err.Error())
	}
	b64 := base64.StdEncoding.EncodeToString
	query := url.Values{}
	for _, k := range []string{"expand", "recursive"} {
		if v := c.r.URL.Query().Get(k); v != "" {
			query.Set(k, v)
		}
	}
	query.Set("limit", strconv.Itoa(limit))
	query.Set("cursor", b64([]byte(b64(raw)+":"+strconv.Itoa(limit))))
	if faultsOf(c.r).has("loop-in-tree") {
		query.Del("cursor")
	}
	next := origin(c.r) + c.r.URL.EscapedPath() + "?" + query.Encode()
	c.w.Header().Set("Link", "<"+next+`>; rel="next"`)
}

func parseCursor(s string) (last string, err error) {
	outer, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", malformed("Invalid cursor")
	}
	inner, _, _ := strings.Cut(string(outer), ":")
	raw, err := base64.StdEncoding.DecodeString(inner)
	if err != nil {
		return "", malformed("Invalid cursor")
	}
	var c cursor
	if json.Unmarshal(raw, &c) != nil || c.FileName == "" {
		return "", malformed("Invalid cursor")
	}
	return c.FileName, nil
}

// origin returns scheme and host as the client wrote them.
func origin(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// pathsInfo answers with the entries of the paths asked for; those that do not exist are left out.
func (s *Server) pathsInfo(c *call, rev string) error {
	repo, done, err := s.at(c, rev, false)
	if err != nil || done {
		return err
	}
	paths, expand, err := readPaths(c)
	if err != nil {
		return err
	}
	entries, err := s.listing(c.r, repo)
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(withDirectories(entries), func(e entry) bool { return !slices.Contains(paths, e.Path) })
	s.writeEntries(c, repo, entries, expand)
	return nil
}

// readPaths reads the body of a paths-info request, a form or JSON, of at most 1 MiB.
func readPaths(c *call) (paths []string, expand bool, err error) {
	body := http.MaxBytesReader(c.w, c.r.Body, 1<<20)
	kind, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, false, malformed("paths-info: %v", err)
	}
	if kind == "application/json" {
		var q struct {
			Paths  []string `json:"paths"`
			Expand bool     `json:"expand"`
		}
		if err := json.Unmarshal(raw, &q); err != nil {
			return nil, false, malformed("paths-info: %v", err)
		}
		return q.Paths, q.Expand, nil
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, false, malformed("paths-info: %v", err)
	}
	return form["paths"], strings.EqualFold(form.Get("expand"), "true"), nil
}
