package bucket

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
)

// apiError is an answer that is not a success, in the words of both APIs.
type apiError struct {
	status  int
	reason  string // of the JSON API
	code    string // of the XML API
	message string
	details string // XML only: what the message is about
	size    int64  // of the object, in an answer to a range that it does not have
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.status, e.reason, e.message) }

func errNoBucket(name string) error {
	return &apiError{status: http.StatusNotFound, reason: "notFound", code: "NoSuchBucket", message: "The specified bucket does not exist.", details: name}
}

func errNoObject(bucket, name string) error {
	return &apiError{
		status: http.StatusNotFound, reason: "notFound", code: "NoSuchKey",
		message: fmt.Sprintf("No such object: %s/%s", bucket, name), details: fmt.Sprintf("No such object: %s/%s", bucket, name),
	}
}

func errNoUpload() error {
	return &apiError{status: http.StatusNotFound, reason: "notFound", code: "NoSuchUpload", message: "The requested upload was not found."}
}

func errPrecondition() error {
	return &apiError{
		status: http.StatusPreconditionFailed, reason: "conditionNotMet", code: "PreconditionFailed",
		message: "At least one of the pre-conditions you specified did not hold.",
	}
}

func errNotModified() error {
	return &apiError{status: http.StatusNotModified, reason: "notModified", code: "NotModified"}
}

func errRange(size int64) error {
	return &apiError{
		status: http.StatusRequestedRangeNotSatisfiable, reason: "requestedRangeNotSatisfiable", code: "InvalidRange",
		message: "The requested range cannot be satisfied.", size: size,
	}
}

func errInvalid(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, reason: "invalid", code: "InvalidArgument", message: fmt.Sprintf(format, args...)}
}

func errRequired(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, reason: "required", code: "InvalidArgument", message: fmt.Sprintf(format, args...)}
}

// errUnsupported refuses a feature of the service that this server does not have.
func errUnsupported(what string) error {
	return &apiError{status: http.StatusNotImplemented, reason: "notImplemented", code: "NotImplemented", message: "The embedded bucket does not support " + what + "."}
}

// writeError answers with err in the form of the API that was asked.
func writeError(w http.ResponseWriter, r *http.Request, rt route, err error) {
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		e = &apiError{status: http.StatusInternalServerError, reason: "backendError", code: "InternalError", message: err.Error()}
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Range", "Content-Encoding", "Last-Modified"} {
		h.Del(name)
	}
	if e.status == http.StatusRequestedRangeNotSatisfiable {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", e.size))
	}
	switch {
	case e.status == http.StatusNotModified:
		w.WriteHeader(e.status)
	case rt.api == apiXML:
		writeXML(w, e.status, xmlError{Code: e.code, Message: e.message, Details: e.details})
	case r.URL.Query().Get("alt") == "media" && r.Method != http.MethodPost:
		// The service answers a failed JSON download with the bare message.
		h.Set("Content-Type", "text/html; charset=UTF-8")
		w.WriteHeader(e.status)
		fmt.Fprint(w, e.message)
	default:
		writeJSON(w, e.status, jsonError(e))
	}
}

// jsonError returns the body of a JSON error answer.
func jsonError(e *apiError) any {
	type item struct {
		Message string `json:"message"`
		Domain  string `json:"domain"`
		Reason  string `json:"reason"`
	}
	type body struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Errors  []item `json:"errors"`
	}
	return map[string]body{"error": {Code: e.status, Message: e.message, Errors: []item{{e.message, "global", e.reason}}}}
}

type xmlError struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	Details string `xml:",omitempty"`
}
