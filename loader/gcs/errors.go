package gcs

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/headstart-serving/headstart/loader/fetch"
)

// bucketError says that the bucket itself is missing.
type bucketError struct{ name string }

func (e *bucketError) Error() string {
	return fmt.Sprintf("there is no bucket gs://%s: create it, or give another one by --bucket or HEADSTART_BUCKET", e.name)
}
func (e *bucketError) Unwrap() []error { return []error{fs.ErrNotExist, fetch.ErrNoBucket} }

// explain turns an error of a read into one of the classes of [fetch.Source].
func (s *Source) explain(ctx context.Context, key string, err error) error {
	if errors.Is(err, storage.ErrObjectNotExist) {
		return fetch.Fail(fs.ErrNotExist, "no object %s in %s", key, s)
	}
	a, ok := answerOf(err)
	if !ok || a.GRPC != "" { // gRPC says that this side gave up as if the other side had said it
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
	}
	switch {
	case !ok:
		// io.EOF means that the object ends: that of a connection is not it.
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s in %s: %w", key, s, err)
	case a.Code == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s in %s: %w", key, s, io.EOF)
	case a.Code == http.StatusNotFound:
		return fetch.Fail(fs.ErrNotExist, "no object %s in %s", key, s)
	}
	return s.refused(a)
}

func (s *Source) explainList(ctx context.Context, err error) error {
	a, ok := answerOf(err)
	switch {
	case errors.Is(err, storage.ErrBucketNotExist), ok && a.Code == http.StatusNotFound:
		return &bucketError{s.name}
	case a.GRPC != "" && ctx.Err() != nil:
		return fmt.Errorf("listing %s: %w", s, context.Cause(ctx))
	case !ok:
		return fmt.Errorf("listing %s: %w", s, err)
	}
	return s.refused(a)
}

func (s *Source) refused(a fetch.StatusError) error {
	switch a.Code {
	case http.StatusUnauthorized:
		return fetch.Fail(fs.ErrPermission, "gs://%s refuses the credentials (%s): run gcloud auth application-default login, or use a service account", s.name, a.Message)
	case http.StatusForbidden:
		return fetch.Fail(fs.ErrPermission, "gs://%s may not be read (%s): grant roles/storage.objectViewer on it to this identity", s.name, a.Message)
	}
	return &a
}

// answerOf returns what a server answered; ok is false for an error that is no server's answer.
func answerOf(err error) (a fetch.StatusError, ok bool) {
	var api *googleapi.Error
	if errors.As(err, &api) {
		return fetch.StatusError{Code: api.Code, Message: message(api)}, true
	}
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return fetch.StatusError{}, false
	}
	return fetch.StatusError{Code: httpStatus(st.Code()), GRPC: st.Code().String(), Message: line(st.Message())}, true
}

// httpStatus returns the HTTP status that stands for a gRPC code, by what it means for another attempt.
func httpStatus(code codes.Code) int {
	switch code {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.Unimplemented: // this is no gRPC server of Cloud Storage
		return http.StatusMethodNotAllowed
	case codes.FailedPrecondition:
		return http.StatusPreconditionFailed
	case codes.OutOfRange:
		return http.StatusRequestedRangeNotSatisfiable
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// message returns what the service said, as one bounded line.
func message(api *googleapi.Error) string {
	text := api.Message
	if text == "" {
		var answer struct{ Code, Message string }
		if xml.Unmarshal([]byte(api.Body), &answer) == nil && answer.Code != "" {
			text = answer.Code + ": " + answer.Message
		}
	}
	if text = line(text); text == "" {
		text = fmt.Sprintf("HTTP %d", api.Code)
	}
	return text
}

// line returns text as one bounded line.
func line(text string) string { return fmt.Sprintf("%.200s", strings.Join(strings.Fields(text), " ")) }
