package bucket

import (
	"net/http"
	"net/url"
	"strings"
)

// api is one of the service's two APIs.
type api int

const (
	apiJSON api = iota
	apiXML
)

// route is what a request asks for, and of what.
type route struct {
	api                  api
	op                   string // the name that fault plans and the request log use
	bucket, object       string // of the destination, where there are two
	sourceBucket, source string
	serve                func(*Server, http.ResponseWriter, *http.Request, route) error
}

// findRoute reads the path as it came, so that any object name is taken for what it is.
func findRoute(r *http.Request) (route, error) {
	path := r.URL.EscapedPath()
	var rt route
	var err error
	switch rest := ""; {
	case has(path, "/storage/v1/b", &rest):
		rt, err = jsonRoute(r, rest)
	case has(path, "/download/storage/v1/b", &rest):
		if rt, err = jsonRoute(r, rest); err == nil && rt.op != "storage.objects.get" {
			err = errNoMethod()
		}
		rt.serve = (*Server).read
	case has(path, "/upload/storage/v1/b", &rest), has(path, "/resumable/upload/storage/v1/b", &rest):
		rt, err = uploadRoute(r, rest)
	case has(path, "/batch", &rest):
		rt = route{op: "batch", serve: (*Server).batch}
	case has(path, "/retry_test", &rest), path == "/retry_tests":
		rt = route{op: "retry_test", serve: (*Server).retryTest}
	case path == "/":
		rt = route{api: apiXML, op: "storage.buckets.list", serve: (*Server).listBucketsXML}
	default:
		rt, err = xmlRoute(r, path)
	}
	if err == nil && rt.serve == nil {
		err = errNoMethod()
	}
	return rt, err
}

// has reports whether path is prefix or below it, and puts what follows into rest.
func has(path, prefix string, rest *string) bool {
	var ok bool
	*rest, ok = strings.CutPrefix(path, prefix)
	return ok && (*rest == "" || (*rest)[0] == '/')
}

func errNoMethod() error {
	return &apiError{status: http.StatusMethodNotAllowed, reason: "methodNotAllowed", code: "MethodNotAllowed", message: "The specified method is not allowed against this resource."}
}

// handler is what serves one method of a resource, and its name.
type handler struct {
	op    string
	serve func(*Server, http.ResponseWriter, *http.Request, route) error
}

// jsonRoute reads a path below /storage/v1/b.
func jsonRoute(r *http.Request, rest string) (route, error) {
	var rt route
	parts, err := splitPath(rest)
	if err != nil {
		return rt, err
	}
	method := r.Method
	if v := r.Header.Get("X-Http-Method-Override"); v != "" && method == http.MethodPost {
		method = v
	}
	var h handler
	at := func(i int, word string) bool { return i < len(parts) && parts[i] == word }
	switch n := len(parts); {
	case n == 0:
		h = bucketsJSON(method)
	case n == 1:
		h = bucketJSON(method)
	case n == 2 && at(1, "o"):
		h = objectsJSON(method)
	case n == 2 && at(1, "storageLayout") && method == http.MethodGet:
		h = handler{"storage.buckets.getStorageLayout", (*Server).storageLayout}
	case n == 2 && at(1, "lockRetentionPolicy") && method == http.MethodPost:
		h = handler{"storage.buckets.lockRetentionPolicy", (*Server).lockRetention}
	case n == 4 && at(1, "o") && at(3, "restore") && method == http.MethodPost:
		h = handler{"storage.objects.restore", (*Server).restoreObject}
		rt.object = parts[2]
	case n == 3 && at(1, "o"):
		h = objectJSON(method)
		rt.object = parts[2]
	case n == 4 && at(1, "o") && at(3, "compose") && method == http.MethodPost:
		h = handler{"storage.objects.compose", (*Server).composeObjects}
		rt.object = parts[2]
	case n == 8 && at(1, "o") && at(4, "b") && at(6, "o") && method == http.MethodPost:
		switch parts[3] {
		case "rewriteTo":
			h = handler{"storage.objects.rewrite", (*Server).rewriteObject}
		case "copyTo":
			h = handler{"storage.objects.copy", (*Server).copyObject}
		}
		rt.sourceBucket, rt.source, rt.object = parts[0], parts[2], parts[7]
		rt.bucket = parts[5]
	case n == 6 && at(1, "o") && at(3, "moveTo") && at(4, "o") && method == http.MethodPost:
		h = handler{"storage.objects.move", (*Server).copyObject}
		rt.sourceBucket, rt.source, rt.object = parts[0], parts[2], parts[5]
	default:
		return rt, &apiError{status: http.StatusNotFound, reason: "notFound", code: "NotFound", message: "Not Found"}
	}
	if rt.bucket == "" && len(parts) > 0 {
		rt.bucket = parts[0]
	}
	rt.op, rt.serve = h.op, h.serve
	return rt, nil
}

// splitPath returns the unescaped parts of "/a/b%2Fc".
func splitPath(rest string) ([]string, error) {
	rest = strings.Trim(rest, "/")
	if rest == "" {
		return nil, nil
	}
	parts := strings.Split(rest, "/")
	for i, p := range parts {
		var err error
		if parts[i], err = url.PathUnescape(p); err != nil {
			return nil, errInvalid("Malformed path.")
		}
	}
	return parts, nil
}

func bucketsJSON(method string) handler {
	switch method {
	case http.MethodGet:
		return handler{"storage.buckets.list", (*Server).listBuckets}
	case http.MethodPost:
		return handler{"storage.buckets.insert", (*Server).insertBucket}
	}
	return handler{}
}

func bucketJSON(method string) handler {
	switch method {
	case http.MethodGet, http.MethodHead:
		return handler{"storage.buckets.get", (*Server).getBucket}
	case http.MethodPatch:
		return handler{"storage.buckets.patch", (*Server).patchBucket}
	case http.MethodPut:
		return handler{"storage.buckets.update", (*Server).patchBucket}
	case http.MethodDelete:
		return handler{"storage.buckets.delete", (*Server).deleteBucket}
	}
	return handler{}
}

func objectsJSON(method string) handler {
	switch method {
	case http.MethodGet:
		return handler{"storage.objects.list", (*Server).listObjects}
	case http.MethodPost:
		return handler{"storage.objects.insert", (*Server).wrongUploadURL}
	}
	return handler{}
}

func objectJSON(method string) handler {
	switch method {
	case http.MethodGet, http.MethodHead:
		return handler{"storage.objects.get", (*Server).getObject}
	case http.MethodPatch:
		return handler{"storage.objects.patch", (*Server).patchObject}
	case http.MethodPut:
		return handler{"storage.objects.update", (*Server).updateObject}
	case http.MethodDelete:
		return handler{"storage.objects.delete", (*Server).deleteObject}
	}
	return handler{}
}

func (s *Server) wrongUploadURL(http.ResponseWriter, *http.Request, route) error {
	return &apiError{status: http.StatusBadRequest, reason: "wrongUrlForUpload", code: "InvalidArgument", message: "Upload requests must be uploaded to an upload URL: /upload/storage/v1/b/BUCKET/o"}
}

// uploadRoute reads a path below /upload/storage/v1/b.
func uploadRoute(r *http.Request, rest string) (route, error) {
	parts, err := splitPath(rest)
	if err != nil {
		return route{}, err
	}
	if len(parts) != 2 || parts[1] != "o" {
		return route{}, &apiError{status: http.StatusNotFound, reason: "notFound", code: "NotFound", message: "Not Found"}
	}
	rt := route{op: "storage.objects.insert", bucket: parts[0], object: r.URL.Query().Get("name")}
	session := r.URL.Query().Has("upload_id")
	switch {
	case session && (r.Method == http.MethodPut || r.Method == http.MethodPost):
		rt.serve = (*Server).continueUpload
	case session && r.Method == http.MethodDelete:
		rt.serve = (*Server).cancelUpload
	case !session && r.Method == http.MethodPost:
		rt.serve = (*Server).insert
	}
	return rt, nil
}
