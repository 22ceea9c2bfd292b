package bucket

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// session is a resumable upload. Its blob holds the bytes that are kept so far: a multiple of
// quantum until the last byte has come.
type session struct {
	ID       string
	Blob     string
	Draft    draft
	Created  time.Time
	Finished *object `json:",omitempty"` // what it became; a repeated last request gets it again

	bucket *bucket
	turn   chan struct{} // holds one token while a request writes to the blob
	writer *blobWriter   // guarded by turn; nil until the first request after a start

	interrupt func() // guarded by the server's mutex; ends the request that has its turn
	gone      bool   // guarded by the server's mutex
}

// startUpload opens a session and answers with its URL
// (https://cloud.google.com/storage/docs/performing-resumable-uploads).
func (s *Server) startUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := startDraft(r, rt)
	if err != nil {
		return err
	}
	b, err := s.early(rt.bucket, d)
	if err != nil {
		return err
	}
	u := &session{ID: newID(), Blob: newID(), Draft: d, Created: time.Now().UTC(), bucket: b, turn: make(chan struct{}, 1)}
	u.writer, err = b.createBlob(u.Blob, !s.OmitMD5 || d.Declared.MD5 != nil, s.keep())
	if err != nil {
		return err
	}
	u.writer.file.Close()
	u.writer.file = nil
	if err := s.addSession(u); err != nil {
		return err
	}
	w.Header().Set("Location", u.location(r, rt))
	w.Header().Set("X-Guploader-Uploadid", u.ID)
	w.Header().Set("Content-Length", "0")
	if rt.api == apiXML {
		w.WriteHeader(http.StatusCreated)
	} else {
		w.WriteHeader(http.StatusOK)
	}
	return nil
}

func startDraft(r *http.Request, rt route) (d draft, err error) {
	if rt.api == apiXML {
		d, err = headerDraft(r, rt)
	} else {
		var body objectBody
		if body, err = decodeBody(r.Body); err == nil {
			d, err = newDraft(r, body)
		}
		if err == nil && d.Attributes.ContentType == "" {
			d.Attributes.ContentType = r.Header.Get("X-Upload-Content-Type")
		}
	}
	if err != nil {
		return d, err
	}
	if v := r.Header.Get("X-Upload-Content-Length"); v != "" {
		n, err := parseSize(v)
		if err != nil {
			return d, errInvalid("Invalid X-Upload-Content-Length: %s", clip(v))
		}
		d.Declared.Size = &n
	}
	return d, d.Declared.addHeaders(r.Header)
}

func (u *session) location(r *http.Request, rt route) string {
	if rt.api == apiXML {
		return baseURL(r) + "/" + u.bucket.Name + "/" + (&url.URL{Path: u.Draft.Name}).EscapedPath() + "?upload_id=" + u.ID
	}
	return baseURL(r) + "/upload/storage/v1/b/" + u.bucket.Name + "/o?uploadType=resumable&name=" + url.QueryEscape(u.Draft.Name) + "&upload_id=" + u.ID
}

func (u *session) recordPath() string {
	return filepath.Join(u.bucket.dir, "uploads", filepath.Base(u.ID)+".json")
}

func (s *Server) addSession(u *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[u.bucket.Name] != u.bucket {
		return errNoBucket(u.bucket.Name)
	}
	if err := writeRecord(u.recordPath(), u); err != nil {
		return err
	}
	u.bucket.sessions[u.ID] = u
	u.bucket.refs[u.Blob]++
	return nil
}

// findSession returns a session of a bucket.
func (s *Server) findSession(bucket, id string) (*session, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.lookup(bucket)
	if err != nil {
		return nil, err
	}
	u := b.sessions[id]
	if u == nil {
		return nil, errNoUpload()
	}
	if time.Since(u.Created) > sessionLife {
		return nil, &apiError{status: http.StatusGone, reason: "gone", code: "NoSuchUpload", message: "The upload session has expired."}
	}
	return u, nil
}

// take waits for the session's turn. A request that holds it is ended first: its client has given
// it up, or it would not have sent another.
func (s *Server) take(ctx context.Context, u *session, interrupt func()) error {
	for {
		s.mu.Lock()
		if u.gone {
			s.mu.Unlock()
			return errNoUpload()
		}
		select {
		case u.turn <- struct{}{}:
			u.interrupt = interrupt
			s.mu.Unlock()
			return nil
		default:
		}
		if u.interrupt != nil {
			u.interrupt()
		}
		s.mu.Unlock()
		select {
		case u.turn <- struct{}{}:
			<-u.turn
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) giveBack(u *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.interrupt = nil
	<-u.turn
}

// remove forgets a session and its bytes. The caller holds mu.
func (u *session) remove() error {
	if u.gone {
		return nil
	}
	u.gone = true
	delete(u.bucket.sessions, u.ID)
	if u.Finished == nil {
		u.bucket.release([]piece{{Blob: u.Blob}})
	}
	if err := os.Remove(u.recordPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// cancelUpload answers DELETE of a session: 499, as the service does.
func (s *Server) cancelUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	u, err := s.findSession(rt.bucket, r.URL.Query().Get("upload_id"))
	if err != nil {
		return err
	}
	if err := s.take(r.Context(), u, func() {}); err != nil {
		return err
	}
	defer s.giveBack(u)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := u.remove(); err != nil {
		return err
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(statusClientClosed)
	return nil
}

// statusClientClosed is the service's answer to a cancelled upload.
const statusClientClosed = 499

// recover opens the blob after a start of the server: what is beyond the last quantum is dropped,
// the sums are made anew.
func (u *session) recover() error {
	f, err := os.OpenFile(u.bucket.blobPath(u.Blob), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate(st.Size() - st.Size()%quantum)
}

// open readies the blob for writing. The caller has the turn.
func (u *session) open(withMD5 bool, keep int64) (*blobWriter, error) {
	f, err := os.OpenFile(u.bucket.blobPath(u.Blob), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if u.writer != nil {
		u.writer.file = f
		return u.writer, nil
	}
	w := newBlobWriter(f, withMD5, keep)
	if err := w.sumFile(); err != nil {
		f.Close()
		return nil, err
	}
	u.writer = w
	return w, nil
}

// sumAgain makes the MD5 of a blob that was written without it.
func (w *blobWriter) sumAgain() error {
	if w.dropped() {
		return errInvalid("The embedded bucket runs with --discard and has dropped these bytes: declare their MD5 when the upload begins.")
	}
	again := newBlobWriter(w.file, true, everything)
	if err := again.sumFile(); err != nil {
		return err
	}
	w.md5 = again.md5
	return nil
}

// sumFile brings the sums up to what the blob holds.
func (w *blobWriter) sumFile() error {
	buf := make([]byte, receiveBuffer)
	for {
		n, err := w.file.ReadAt(buf, w.size)
		w.add(buf[:n])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
