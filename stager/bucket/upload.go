package bucket

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
)

// maxObjectBytes is the largest object in bytes (https://cloud.google.com/storage/quotas#objects).
const maxObjectBytes = 5 << 40

// maxBody bounds a JSON body in bytes.
const maxBody = 1 << 20

// draft is what a request says about an object that it is about to make.
type draft struct {
	Name       string
	Attributes attributes
	Conditions conditions
	Declared   declared
}

// insert answers POST /upload/storage/v1/b/BUCKET/o, whose query says how the bytes come.
func (s *Server) insert(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := s.checkBucket(rt.bucket); err != nil {
		return err
	}
	switch kind := r.URL.Query().Get("uploadType"); kind {
	case "media":
		return s.insertMedia(w, r, rt)
	case "multipart":
		return s.insertMultipart(w, r, rt)
	case "resumable":
		return s.startUpload(w, r, rt)
	default:
		return errInvalid("Invalid upload type: %q", clip(kind))
	}
}

func (s *Server) insertMedia(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := newDraft(r, objectBody{})
	if err != nil {
		return err
	}
	d.Attributes.ContentType = r.Header.Get("Content-Type")
	return s.store(w, r, rt, d, r.Body)
}

// insertMultipart takes the object resource and the bytes as the two parts of one body
// (https://cloud.google.com/storage/docs/json_api/v1/how-tos/multipart-upload).
func (s *Server) insertMultipart(w http.ResponseWriter, r *http.Request, rt route) error {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/related" && kind != "multipart/mixed" || params["boundary"] == "" {
		return errInvalid("Bad content type for a multipart upload: a multipart/related body with a boundary is required.")
	}
	parts := multipart.NewReader(r.Body, params["boundary"])
	first, err := parts.NextRawPart()
	if err != nil {
		return malformed(err, "Malformed multipart body.")
	}
	body, err := decodeBody(first)
	if err != nil {
		return err
	}
	d, err := newDraft(r, body)
	if err != nil {
		return err
	}
	second, err := parts.NextRawPart()
	if err != nil {
		return malformed(err, "Malformed multipart body.")
	}
	if d.Attributes.ContentType == "" {
		d.Attributes.ContentType = second.Header.Get("Content-Type")
	}
	return s.store(w, r, rt, d, &onlyPart{part: second, rest: parts})
}

// onlyPart reads a multipart body's last part: it ends well only if the whole body does.
type onlyPart struct {
	part io.Reader
	rest *multipart.Reader
	err  error // once the part has ended
}

func (p *onlyPart) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.part.Read(b)
	if err == io.EOF {
		if _, next := p.rest.NextRawPart(); next == nil {
			err = errInvalid("A multipart upload has two parts, got more.")
		} else if next != io.EOF {
			err = malformed(next, "Malformed multipart body.")
		}
	}
	p.err = err
	return n, err
}

// malformed returns err if it is an answer already, and else the given one.
func malformed(err error, message string) error {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	return errInvalid("%s", message)
}

// decodeBody reads a JSON object of bounded size; nothing at all is an empty one.
func decodeBody(r io.Reader) (objectBody, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return nil, malformed(err, "The request's body ended early.")
	}
	if len(data) > maxBody {
		return nil, errInvalid("The request's body is too large.")
	}
	body := objectBody{}
	if len(data) == 0 {
		return body, nil
	}
	if err := json.Unmarshal(data, &body); err != nil {
		return nil, &apiError{status: http.StatusBadRequest, reason: "parseError", code: "InvalidArgument", message: "Parse Error"}
	}
	return body, nil
}

// newDraft reads what the query, the headers and an object resource say of a JSON API upload.
func newDraft(r *http.Request, body objectBody) (draft, error) {
	q := r.URL.Query()
	d := draft{Name: q.Get("name")}
	if d.Name == "" {
		d.Name = body.text("name")
	}
	if err := checkObjectName(d.Name); err != nil {
		return d, err
	}
	var err error
	if d.Conditions, err = requestConditions(r); err != nil {
		return d, err
	}
	if d.Declared, err = body.hashes(); err != nil {
		return d, err
	}
	if err = d.Attributes.apply(body); err != nil {
		return d, err
	}
	if e := q.Get("contentEncoding"); e != "" {
		d.Attributes.ContentEncoding = e
	}
	return d, nil
}

// putObject answers PUT /BUCKET/OBJECT of the XML API.
func (s *Server) putObject(w http.ResponseWriter, r *http.Request, rt route) error {
	if r.Header.Get("X-Goog-Copy-Source") != "" {
		return errUnsupported("copies through the XML API")
	}
	d, err := headerDraft(r, rt)
	if err != nil {
		return err
	}
	return s.store(w, r, rt, d, r.Body)
}

// headerDraft reads what the headers of an XML API upload say.
func headerDraft(r *http.Request, rt route) (d draft, err error) {
	d.Name = rt.object
	if err := checkObjectName(d.Name); err != nil {
		return d, err
	}
	if d.Conditions, err = requestConditions(r); err != nil {
		return d, err
	}
	d.Attributes, err = headerAttributes(r.Header)
	return d, err
}

// store receives a whole object in one request and answers with it.
func (s *Server) store(w http.ResponseWriter, r *http.Request, rt route, d draft, body io.Reader) error {
	if err := d.Declared.addHeaders(r.Header); err != nil {
		return err
	}
	b, err := s.early(rt.bucket, d)
	if err != nil {
		return err
	}
	id := newID()
	blob, err := b.createBlob(id, !s.OmitMD5 || d.Declared.MD5 != nil, s.keep())
	if err != nil {
		return err
	}
	defer blob.file.Close()
	o, err := s.receiveObject(b, blob, id, d, body)
	if err != nil {
		s.drop(b, id)
		return err
	}
	return answerStored(w, r, rt, o)
}

// early refuses what could not be stored anyway, before its bytes come.
func (s *Server) early(name string, d draft) (*bucket, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	return b, d.Conditions.forWrite(b.objects[d.Name])
}

// receiveObject fills a blob from body and puts the object.
func (s *Server) receiveObject(b *bucket, blob *blobWriter, id string, d draft, body io.Reader) (*object, error) {
	if err := s.receive(blob, io.LimitReader(body, maxObjectBytes+1), true); err != nil {
		return nil, malformed(err, "The request's body ended early.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := blob.object(d, id)
	if err != nil {
		return nil, err
	}
	return o, s.put(b, o, d.Conditions)
}

// object returns the object that a complete blob makes.
func (w *blobWriter) object(d draft, id string) (*object, error) {
	if w.size > maxObjectBytes {
		return nil, &apiError{status: http.StatusBadRequest, reason: "uploadTooLarge", code: "EntityTooLarge", message: "The object is larger than 5 TiB."}
	}
	crc, md5sum := w.sums()
	if err := d.Declared.check(w.size, crc, md5sum); err != nil {
		return nil, err
	}
	o := &object{Name: d.Name, Size: w.size, CRC32C: crc, MD5: md5sum, Attributes: d.Attributes, Pieces: []piece{{id, w.size, w.dropped()}}}
	if o.Attributes.ContentType == "" {
		o.Attributes.ContentType = "application/octet-stream"
	}
	if o.Attributes.StorageClass == "" {
		o.Attributes.StorageClass = "STANDARD"
	}
	return o, nil
}

// drop removes a blob that became no object.
func (s *Server) drop(b *bucket, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.release([]piece{{Blob: id}})
}

// checkBucket says whether a bucket exists.
func (s *Server) checkBucket(name string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, err := s.lookup(name)
	return err
}

// answerStored answers a finished upload in the form of the API that was asked.
func answerStored(w http.ResponseWriter, r *http.Request, rt route, o *object) error {
	if rt.api == apiXML {
		objectHeaders(w.Header(), o, rt.api)
		w.Header().Del("Content-Type")
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.Header().Set("ETag", etag(o.numbers()))
	return writeJSON(w, http.StatusOK, o.resource(r, rt.bucket))
}
