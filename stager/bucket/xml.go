package bucket

import (
	"net/http"
	"net/url"
	"strings"
)

// xmlRoute reads a path-style path of the XML API: /BUCKET or /BUCKET/OBJECT.
func xmlRoute(r *http.Request, path string) (route, error) {
	rt := route{api: apiXML}
	name, object, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	var err error
	if rt.bucket, err = url.PathUnescape(name); err != nil {
		return rt, errInvalid("Malformed path.")
	}
	if rt.object, err = url.PathUnescape(object); err != nil {
		return rt, errInvalid("Malformed path.")
	}
	h := objectXML(r)
	if rt.object == "" {
		h = bucketXML(r)
	}
	rt.op, rt.serve = h.op, h.serve
	return rt, nil
}

func objectXML(r *http.Request) handler {
	session := r.URL.Query().Has("upload_id")
	switch {
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return handler{"storage.objects.get", (*Server).read}
	case r.Method == http.MethodPut && session:
		return handler{"storage.objects.insert", (*Server).continueUpload}
	case r.Method == http.MethodPut:
		return handler{"storage.objects.insert", (*Server).putObject}
	case r.Method == http.MethodPost && strings.EqualFold(r.Header.Get("X-Goog-Resumable"), "start"):
		return handler{"storage.objects.insert", (*Server).startUpload}
	case r.Method == http.MethodDelete && session:
		return handler{"storage.objects.insert", (*Server).cancelUpload}
	case r.Method == http.MethodDelete:
		return handler{"storage.objects.delete", (*Server).deleteObject}
	}
	return handler{}
}

func bucketXML(r *http.Request) handler {
	switch r.Method {
	case http.MethodGet:
		return handler{"storage.objects.list", (*Server).listObjectsXML}
	case http.MethodHead:
		return handler{"storage.buckets.get", (*Server).headBucketXML}
	case http.MethodPut:
		return handler{"storage.buckets.insert", (*Server).putBucketXML}
	case http.MethodDelete:
		return handler{"storage.buckets.delete", (*Server).deleteBucket}
	}
	return handler{}
}

func (s *Server) headBucketXML(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := s.checkBucket(rt.bucket); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) putBucketXML(w http.ResponseWriter, r *http.Request, rt route) error {
	if _, err := s.createBucket(rt.bucket, bucketAttributes{}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) storageLayout(w http.ResponseWriter, r *http.Request, rt route) error {
	s.mu.RLock()
	b, err := s.conditionalBucket(r, rt)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{
		"kind": "storage#storageLayout", "bucket": rt.bucket, "location": b.Location, "locationType": "multi-region",
		"hierarchicalNamespace": map[string]bool{"enabled": false},
	})
}
