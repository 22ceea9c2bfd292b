package bucket

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// contentRange is what a Content-Range header of an upload says.
type contentRange struct {
	first, last int64 // the bytes of the body; last is -1 when the header does not say, and there are none when empty
	total       int64 // size of the whole object; -1: not known yet
	empty       bool  // "bytes */…": no bytes, a question or the end
}

// parseContentRange reads "bytes a-b/total", "bytes a-*/*", "bytes a-b/*", "bytes */total", "bytes */*".
func parseContentRange(s string) (contentRange, error) {
	bad := errInvalid("Failed to parse Content-Range header.")
	c := contentRange{total: -1}
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !ok {
		return c, bad
	}
	span, total, ok := strings.Cut(strings.TrimSpace(rest), "/")
	if !ok {
		return c, bad
	}
	var err error
	if total != "*" {
		if c.total, err = parseSize(total); err != nil {
			return c, bad
		}
	}
	if span == "*" {
		c.empty, c.last = true, -1
		return c, nil
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return c, bad
	}
	if c.first, err = parseSize(first); err != nil {
		return c, bad
	}
	if last == "*" {
		c.last = -1
		return c, nil
	}
	if c.last, err = parseSize(last); err != nil || c.last < c.first || c.total >= 0 && c.last >= c.total {
		return c, bad
	}
	return c, nil
}

// parseSize reads a count of bytes that an object can have: digits only.
func parseSize(s string) (int64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n > maxObjectBytes {
		err = strconv.ErrRange
	}
	return n, err
}

// uploadRange returns the range of a request to a session.
func uploadRange(r *http.Request) (contentRange, error) {
	v := r.Header.Get("Content-Range")
	if v == "" {
		return contentRange{last: r.ContentLength - 1, total: r.ContentLength, empty: false}, nil
	}
	c, err := parseContentRange(v)
	if err != nil {
		return c, err
	}
	if r.ContentLength >= 0 {
		switch {
		case c.empty && r.ContentLength > 0:
			return c, errInvalid("A body came with a Content-Range that has no bytes.")
		case !c.empty && c.last >= 0 && r.ContentLength != c.last-c.first+1:
			return c, errInvalid("Content-Length %d does not agree with Content-Range %s.", r.ContentLength, clip(v))
		}
	}
	return c, nil
}

// continueUpload answers a request to a session's URL: bytes, the end, or a question.
func (s *Server) continueUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	u, err := s.findSession(rt.bucket, r.URL.Query().Get("upload_id"))
	if err != nil {
		return err
	}
	span, err := uploadRange(r)
	if err != nil {
		return err
	}
	past := time.Unix(1, 0)
	conn := http.NewResponseController(w)
	if err := s.take(r.Context(), u, func() { conn.SetReadDeadline(past) }); err != nil {
		return err
	}
	defer s.giveBack(u)
	if u.Finished != nil {
		return answerStored(w, r, rt, u.Finished)
	}
	blob, err := u.open(!s.OmitMD5 || u.Draft.Declared.MD5 != nil, s.keep())
	if err != nil {
		return err
	}
	defer blob.file.Close()
	done, err := s.receiveSpan(r, u, blob, span)
	if err != nil {
		return err
	}
	if !done {
		return answerIncomplete(w, r, blob.size)
	}
	if blob.md5 == nil && declaresMD5(r.Header) {
		if err := blob.sumAgain(); err != nil {
			return err
		}
	}
	o, err := s.finish(r, u, blob)
	if err != nil {
		return err
	}
	return answerStored(w, r, rt, o)
}

// receiveSpan appends what of a request's body is not there yet; done means that it was the last.
func (s *Server) receiveSpan(r *http.Request, u *session, blob *blobWriter, span contentRange) (done bool, err error) {
	if err := u.declare(span.total, blob.size); err != nil {
		return false, err
	}
	if span.empty {
		return span.total >= 0 && span.total == blob.size, nil
	}
	if span.first > blob.size {
		// The service's words; it calls this one worth a retry.
		return false, &apiError{status: http.StatusServiceUnavailable, reason: "backendError", code: "ServiceUnavailable", message: "Invalid request.  According to the Content-Range header, the upload offset is " +
			itoa(span.first) + " byte(s), which exceeds already uploaded size of " + itoa(blob.size) + " byte(s)."}
	}
	last := span.total >= 0 && (span.last < 0 || span.last == span.total-1) || span.total < 0 && r.Header.Get("Content-Range") == ""
	if !last && span.last >= 0 && span.last-span.first+1 < quantum {
		return false, errInvalid("Invalid request.  The number of bytes uploaded is required to be equal or greater than %d, except for the final request (it's recommended to be the exact multiple of %d).  The received request contained %d bytes, which does not meet this requirement.",
			quantum, quantum, span.last-span.first+1)
	}
	if _, err := io.CopyN(io.Discard, r.Body, blob.size-span.first); err != nil && err != io.EOF {
		return false, malformed(err, "The request's body ended early.")
	}
	body := &exactReader{r: r.Body, left: maxObjectBytes + 1, open: true}
	switch {
	case span.last >= 0:
		body.left, body.open = span.last+1-blob.size, false
	case span.total >= 0:
		body.left, body.open = span.total-blob.size, false
	}
	if err := s.receive(blob, body, last); err != nil {
		return false, malformed(err, "The request's body ended early.")
	}
	return last && (span.total < 0 || blob.size == span.total), nil
}

// declare notes the size of the whole object, which may be said once.
func (u *session) declare(total, have int64) error {
	if total < 0 {
		return nil
	}
	d := &u.Draft.Declared
	if d.Size != nil && *d.Size != total {
		return errInvalid("Invalid request.  The upload's size is %d bytes, but was declared as %d bytes before.", total, *d.Size)
	}
	if total < have {
		return errInvalid("Invalid request.  The upload's size is %d bytes, but %d bytes are already stored.", total, have)
	}
	d.Size = &total
	return nil
}

// declaresMD5 reports whether the last request of an upload wants its MD5 compared.
func declaresMD5(h http.Header) bool {
	var d declared
	return d.addHeaders(h) == nil && d.MD5 != nil
}

// finish makes the object of a complete session.
func (s *Server) finish(r *http.Request, u *session, blob *blobWriter) (*object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := u.Draft
	err := d.Declared.addHeaders(r.Header)
	var o *object
	if err == nil {
		o, err = blob.object(d, u.Blob)
	}
	if err == nil {
		o.Upload = u.ID
		err = s.put(u.bucket, o, d.Conditions)
	}
	if err != nil {
		return nil, errors.Join(err, u.remove())
	}
	u.Finished = o
	u.bucket.release([]piece{{Blob: u.Blob}}) // the object holds it now
	return o, writeRecord(u.recordPath(), u)
}

// answerIncomplete says how much is kept: 308, or 200 for clients that cannot bear a 308.
func answerIncomplete(w http.ResponseWriter, r *http.Request, size int64) error {
	h := w.Header()
	if size > 0 {
		h.Set("Range", "bytes=0-"+itoa(size-1))
	}
	h.Set("Content-Length", "0")
	if r.Header.Get("X-Guploader-No-308") == "yes" {
		h.Set("X-Http-Status-Code-Override", "308")
		w.WriteHeader(http.StatusOK)
	} else {
		w.WriteHeader(http.StatusPermanentRedirect)
	}
	return nil
}

// exactReader ends after left bytes, and fails when its source ends before, unless it is open.
type exactReader struct {
	r    io.Reader
	left int64
	open bool // left is a bound only
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 && !e.open {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
