package hub

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// send answers with a file's bytes or a range of them. It returns an error only before the status is
// out; after that a failing read cuts the connection.
func (s *Server) send(w http.ResponseWriter, r *http.Request, repo Repo, f *File, etag string) error {
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Accept-Ranges", "bytes")
	if matches(r.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	off, n, status := int64(0), f.Size, http.StatusOK
	if asked := wanted(r, etag); asked != "" {
		from, length, err := parseRange(asked, f.Size)
		switch {
		case errors.Is(err, errUnsatisfiable):
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", f.Size))
			http.Error(w, "Range Not Satisfiable", http.StatusRequestedRangeNotSatisfiable)
			return nil
		case err == nil:
			off, n, status = from, length, http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, f.Size))
		}
	}
	var body io.ReaderAt
	if r.Method != http.MethodHead {
		var err error
		if body, err = repo.Open(f.Path); err != nil {
			h.Del("Content-Range")
			h.Del("ETag")
			return fmt.Errorf("opening %s: %w", f.Path, err)
		}
		defer closeBody(body)
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(status)
	if body == nil {
		return nil
	}
	if err := s.copy(w, body, off, n); err != nil {
		if r.Context().Err() == nil {
			s.cfg.Log.Warn("answer cut", "file", f.Path, "offset", off, "bytes", n, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// wanted returns the Range header if it is to be obeyed.
func wanted(r *http.Request, etag string) string {
	if v := r.Header.Get("If-Range"); v != "" && v != etag {
		return "" // a date or another version: the whole file
	}
	if r.Method != http.MethodGet || faultsOf(r).has("ignore-range") {
		return ""
	}
	return r.Header.Get("Range")
}

// matches reports whether an If-None-Match header names the tag.
func matches(header, etag string) bool {
	for v := range strings.SplitSeq(header, ",") {
		v = strings.TrimSpace(v)
		if v == "*" || strings.TrimPrefix(v, "W/") == etag {
			return true
		}
	}
	return false
}

var (
	errNoRange       = errors.New("not one range of bytes")
	errUnsatisfiable = errors.New("the range begins at or after the end")
)

// parseRange reads a Range header for a body of size bytes. One range is understood; several, or what
// is no range at all, are an error that means: send everything, as the Hub's CDN does.
func parseRange(header string, size int64) (off, n int64, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !dash {
		return 0, 0, errNoRange
	}
	if first == "" { // the last n bytes
		n, err := digits(last)
		switch {
		case err != nil:
			return 0, 0, err
		case n == 0 || size == 0:
			return 0, 0, errUnsatisfiable
		}
		n = min(n, size)
		return size - n, n, nil
	}
	if off, err = digits(first); err != nil {
		return 0, 0, err
	}
	end := size - 1
	if last != "" {
		if end, err = digits(last); err != nil {
			return 0, 0, err
		}
		if end < off {
			return 0, 0, errNoRange
		}
	}
	if off >= size {
		return 0, 0, errUnsatisfiable
	}
	return off, min(end, size-1) - off + 1, nil
}

// digits reads a number of ASCII digits; one that is too large is the largest.
func digits(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errNoRange
	}
	n, _ := strconv.ParseInt(s, 10, 64) // out of range: MaxInt64
	return n, nil
}

// buffer is what bodies that are not files are sent through.
type buffer [1 << 20]byte

// copy sends n bytes of body from off: by the kernel if it is a file, else a MiB at a time.
func (s *Server) copy(w http.ResponseWriter, body io.ReaderAt, off, n int64) error {
	if f, ok := body.(*os.File); ok {
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			return err
		}
		_, err := io.CopyN(w, f, n)
		return err
	}
	buf, _ := s.buffers.Get().(*buffer)
	if buf == nil {
		buf = new(buffer)
	}
	defer s.buffers.Put(buf)
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if m, err := body.ReadAt(p, off); m < len(p) {
			return fmt.Errorf("reading at %d: %w", off, err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func closeBody(body io.ReaderAt) {
	if c, ok := body.(io.Closer); ok {
		c.Close() // opened for reading: nothing can be lost
	}
}
