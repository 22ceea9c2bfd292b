package bucket

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// getObject answers a JSON GET of an object: its bytes with alt=media, its resource without.
func (s *Server) getObject(w http.ResponseWriter, r *http.Request, rt route) error {
	if r.URL.Query().Get("alt") == "media" {
		return s.read(w, r, rt)
	}
	rd, err := s.openRequested(r, rt)
	if err != nil {
		return err
	}
	defer rd.close()
	tag := etag(rd.numbers())
	if err := checkETags(r.Header, tag); err != nil {
		return err
	}
	w.Header().Set("ETag", tag)
	return writeJSON(w, http.StatusOK, rd.resource(r, rt.bucket))
}

// openRequested opens the generation of the object that r names, if r's conditions hold.
func (s *Server) openRequested(r *http.Request, rt route) (*reader, error) {
	generation, err := queryGeneration(r, "generation")
	if err != nil {
		return nil, err
	}
	cond, err := requestConditions(r)
	if err != nil {
		return nil, err
	}
	rd, err := s.openObject(rt.bucket, rt.object, generation, r.URL.Query().Get("softDeleted") == "true")
	if err != nil {
		return nil, err
	}
	if err := cond.forRead(rd.object); err != nil {
		rd.close()
		return nil, err
	}
	return rd, nil
}

// queryGeneration returns the generation that a query names, 0 if it names none; gcsfuse says 0 for the
// live one.
func queryGeneration(r *http.Request, field string) (int64, error) {
	v := r.URL.Query().Get(field)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, errInvalid("Invalid value for %s: %s", field, clip(v))
	}
	return n, nil
}

// read answers with an object's bytes, or with their headers only for HEAD.
func (s *Server) read(w http.ResponseWriter, r *http.Request, rt route) error {
	rd, err := s.openRequested(r, rt)
	if err != nil {
		return err
	}
	defer rd.close()
	h := w.Header()
	objectHeaders(h, rd.object, rt.api)
	if err := checkETags(r.Header, strings.Trim(h.Get("ETag"), `"`)); err != nil {
		return err
	}
	if rd.Attributes.ContentEncoding == "gzip" && !rd.dropped(0, rd.Size) && !acceptsGzip(r) && !strings.Contains(rd.Attributes.CacheControl, "no-transform") {
		return rd.sendDecompressed(w, r)
	}
	h.Set("Accept-Ranges", "bytes")
	start, length, whole, err := parseRange(r.Header.Get("Range"), rd.Size)
	if err != nil {
		return err
	}
	if r.Method != http.MethodHead && rd.dropped(start, length) {
		return errDropped(rt.bucket, rd.Name)
	}
	h.Set("Content-Length", itoa(length))
	status := http.StatusOK
	if !whole {
		h.Set("Content-Range", "bytes "+itoa(start)+"-"+itoa(start+length-1)+"/"+itoa(rd.Size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	return rd.send(w, start, length)
}

// objectHeaders sets what both APIs say about an object beside its bytes.
func objectHeaders(h http.Header, o *object, kind api) {
	h.Set("X-Goog-Generation", itoa(o.Generation))
	h.Set("X-Goog-Metageneration", itoa(o.Metageneration))
	h.Set("X-Goog-Stored-Content-Length", itoa(o.Size))
	h.Set("X-Goog-Stored-Content-Encoding", "identity")
	h.Set("X-Goog-Storage-Class", o.Attributes.StorageClass)
	h.Add("X-Goog-Hash", "crc32c="+encodeCRC(o.CRC32C))
	if o.MD5 != nil {
		h.Add("X-Goog-Hash", "md5="+encode64(o.MD5))
	}
	if o.Components > 0 {
		h.Set("X-Goog-Component-Count", strconv.Itoa(o.Components))
	}
	h.Set("Last-Modified", o.Updated.Format(http.TimeFormat))
	switch {
	case kind != apiXML:
		h.Set("ETag", etag(o.numbers()))
	case o.MD5 != nil:
		h.Set("ETag", `"`+hex.EncodeToString(o.MD5)+`"`)
	default:
		h.Set("ETag", `"`+etag(o.numbers())+`"`)
	}
	a := &o.Attributes
	for name, value := range map[string]string{
		"Content-Type": a.ContentType, "Content-Disposition": a.ContentDisposition,
		"Content-Language": a.ContentLanguage, "Cache-Control": a.CacheControl, "X-Goog-Custom-Time": a.CustomTime,
	} {
		if value != "" {
			h.Set(name, value)
		}
	}
	if a.ContentEncoding != "" {
		h.Set("Content-Encoding", a.ContentEncoding)
		h.Set("X-Goog-Stored-Content-Encoding", a.ContentEncoding)
	}
	for k, v := range a.Metadata {
		h.Set("X-Goog-Meta-"+k, v)
	}
}

// send copies bytes of the object to w. The source is a bare file behind a limit, which net/http
// hands to sendfile: no byte passes through this process.
func (rd *reader) send(w io.Writer, start, length int64) error {
	for _, p := range rd.Pieces {
		if length == 0 {
			return nil
		}
		if start >= p.Size {
			start -= p.Size
			continue
		}
		n := min(p.Size-start, length)
		if err := rd.sendPiece(w, p, start, n); err != nil {
			return err
		}
		start, length = 0, length-n
	}
	return nil
}

func (rd *reader) sendPiece(w io.Writer, p piece, start, n int64) error {
	f, err := os.Open(rd.bucket.blobPath(p.Blob))
	if err != nil {
		return err
	}
	defer f.Close()
	if start > 0 {
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return err
		}
	}
	_, err = io.CopyN(w, f, n)
	return err
}

func acceptsGzip(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept-Encoding") {
		for item := range strings.SplitSeq(line, ",") {
			if name, _, _ := strings.Cut(strings.TrimSpace(item), ";"); name == "gzip" || name == "*" {
				return true
			}
		}
	}
	return false
}

// sendDecompressed answers a client that takes no gzip with what a gzip object unpacks to. A range
// is ignored, and the length is not known
// (https://cloud.google.com/storage/docs/transcoding).
func (rd *reader) sendDecompressed(w http.ResponseWriter, r *http.Request) error {
	w.Header().Del("Content-Encoding")
	w.Header().Set("Warning", "214 UploadServer gunzipped")
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(rd.send(pw, 0, rd.Size))
	}()
	defer func() { pr.Close(); <-done }()
	unpacked, err := gzip.NewReader(pr)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, unpacked)
	return err
}

// dropped reports whether any of these bytes has been dropped (Server.Discard).
func (o *object) dropped(start, length int64) bool {
	end, at := start+length, int64(0)
	for _, p := range o.Pieces {
		if p.Dropped && at < end && start < at+p.Size {
			return true
		}
		at += p.Size
	}
	return false
}

// errDropped refuses a read, with a status that no client tries again.
func errDropped(bucket, name string) error {
	return &apiError{
		status: http.StatusGone, reason: "gone", code: "BytesDropped",
		message: "The embedded bucket runs with --discard and has dropped these bytes of " + bucket + "/" + clip(name) + ": their checksums are what is left.",
	}
}
