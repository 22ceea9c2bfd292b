package hub

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// resolve answers where a file's bytes are: on this host for a small one (307, relative), on the
// CDN for an LFS one (302, absolute and signed).
func (s *Server) resolve(c *call) error {
	rev, name := c.rest[1], strings.Join(c.rest[2:], "/")
	repo, done, err := s.at(c, rev, true)
	if err != nil || done {
		return err
	}
	f := file(repo, name)
	if f == nil {
		return noEntry(name, repo.Commit())
	}
	h := c.w.Header()
	h.Set("X-Repo-Commit", repo.Commit())
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Disposition", disposition(name))
	if f.LFS {
		return s.resolveLFS(c, repo, f)
	}
	etag := fmt.Sprintf(`"%x"`, f.GitSHA1)
	h.Set("X-Linked-Etag", etag)
	to := "/api/resolve-cache/models/" + c.name + "/" + repo.Commit() + "/" + escapePath(name) +
		"?" + url.QueryEscape(c.r.URL.Path) + "=&etag=" + url.QueryEscape(etag)
	redirect(c.w, http.StatusTemporaryRedirect, to)
	return nil
}

func (s *Server) resolveLFS(c *call, repo Repo, f *File) error {
	sum, err := f.SHA256()
	if err != nil {
		return fmt.Errorf("digest of %s: %w", f.Path, err)
	}
	h := c.w.Header()
	h.Set("X-Linked-Etag", fmt.Sprintf(`"%x"`, sum))
	h.Set("X-Linked-Size", fmt.Sprint(f.Size))
	h.Set("Cache-Control", "no-store")
	if err := s.linkXet(c, repo, f); err != nil {
		return err
	}
	if !s.cfg.Xet.bridges(f.Size) {
		return unbridged(c, f)
	}
	to, err := s.sign(c.r, repo, f, sum)
	if err != nil {
		return err
	}
	redirect(c.w, http.StatusFound, to)
	return nil
}

// linkXet says what the file is called in the content-addressed store and how to be let in there.
func (s *Server) linkXet(c *call, repo Repo, f *File) error {
	hash, err := s.xetHash(c.r.Context(), repo, f)
	if err != nil || hash == "" {
		return err
	}
	cas, err := s.casBase(c.r)
	if err != nil {
		return err
	}
	c.w.Header().Set("X-Xet-Hash", hash)
	c.w.Header().Set("Link", fmt.Sprintf(`<%s/api/models/%s/xet-read-token/%s>; rel="xet-auth", <%s/v1/reconstructions/%s>; rel="xet-reconstruction-info"`,
		origin(c.r), c.name, repo.Commit(), cas, hash))
	return nil
}

// unbridged answers about a file that can be had through Xet alone. How the Hub itself puts that is not known.
func unbridged(c *call, f *File) error {
	if c.r.Method == http.MethodHead {
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	return &refusal{status: http.StatusForbidden, message: fmt.Sprintf("%s is too large for plain HTTP: use Xet", f.Path)}
}

// resolveCache sends a small file: rest is the repository's name, a commit and a path.
func (s *Server) resolveCache(c *call, rest []string) error {
	i := slices.IndexFunc(rest, isCommit)
	if i < 1 || i > 2 || i+1 == len(rest) {
		return &refusal{status: http.StatusNotFound, message: "Sorry, we can't find the page you are looking for."}
	}
	c.name = strings.Join(rest[:i], "/")
	commit, name := rest[i], strings.Join(rest[i+1:], "/")
	repo, done, err := s.at(c, commit, true)
	if err != nil || done {
		return err
	}
	f := file(repo, name)
	if f == nil || f.LFS {
		return noEntry(name, commit)
	}
	c.w.Header().Set("X-Repo-Commit", commit)
	c.w.Header().Set("Content-Disposition", disposition(name))
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	return s.sendSmall(c, repo, f)
}

func (s *Server) sendSmall(c *call, repo Repo, f *File) error {
	etag := fmt.Sprintf(`"%x"`, f.GitSHA1)
	if zipped(c.r, f) && !matches(c.r.Header.Get("If-None-Match"), etag) {
		return sendZipped(c.w, repo, f, etag)
	}
	return s.send(c.w, c.r, repo, f, etag)
}

// zipped reports whether the answer is compressed on the way, which the Hub does for text when the
// client lets it: the answer then has no length, and a weak ETag.
func zipped(r *http.Request, f *File) bool {
	text := slices.Contains([]string{".json", ".txt", ".md", ".jinja"}, path.Ext(f.Path))
	return text && f.Size >= 1024 && r.Method == http.MethodGet && r.Header.Get("Range") == "" &&
		strings.Contains(r.Header.Get("Accept-Encoding"), "gzip")
}

func sendZipped(w http.ResponseWriter, repo Repo, f *File, etag string) error {
	body, err := repo.Open(f.Path)
	if err != nil {
		return fmt.Errorf("opening %s: %w", f.Path, err)
	}
	defer closeBody(body)
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("Vary", "Accept-Encoding")
	w.Header().Set("ETag", "W/"+etag)
	http.NewResponseController(w).Flush() // or net/http counts a short answer and gives its length
	z := gzip.NewWriter(w)
	if _, err := io.Copy(z, io.NewSectionReader(body, 0, f.Size)); err != nil {
		panic(http.ErrAbortHandler) // the status is out: only a cut says that this is not all
	}
	if err := z.Close(); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func disposition(name string) string {
	base := path.Base(name)
	return `inline; filename*=UTF-8''` + url.PathEscape(base) + `; filename="` + strings.Map(quotable, base) + `";`
}

// quotable replaces what cannot stand in a quoted ASCII string.
func quotable(r rune) rune {
	if r < ' ' || r >= 0x7f || r == '"' || r == '\\' {
		return '?'
	}
	return r
}

// escapePath escapes a path's segments and keeps its slashes.
func escapePath(name string) string {
	segments := strings.Split(name, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return strings.Join(segments, "/")
}
