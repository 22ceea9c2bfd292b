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
	var api *googleapi.Error
	if !errors.As(err, &api) {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		// io.EOF means that the object ends: that of a connection is not it.
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s in %s: %w", key, s, err)
	}
	switch api.Code {
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s in %s: %w", key, s, io.EOF)
	case http.StatusNotFound:
		return fetch.Fail(fs.ErrNotExist, "no object %s in %s", key, s)
	}
	return s.refused(api)
}

func (s *Source) explainList(err error) error {
	var api *googleapi.Error
	switch {
	case errors.Is(err, storage.ErrBucketNotExist):
		return &bucketError{s.name}
	case !errors.As(err, &api):
		return fmt.Errorf("listing %s: %w", s, err)
	case api.Code == http.StatusNotFound:
		return &bucketError{s.name}
	}
	return s.refused(api)
}

func (s *Source) refused(api *googleapi.Error) error {
	switch api.Code {
	case http.StatusUnauthorized:
		return fetch.Fail(fs.ErrPermission, "gs://%s refuses the credentials (%s): run gcloud auth application-default login, or use a service account", s.name, message(api))
	case http.StatusForbidden:
		return fetch.Fail(fs.ErrPermission, "gs://%s may not be read (%s): grant roles/storage.objectViewer on it to this identity", s.name, message(api))
	}
	return &fetch.StatusError{Code: api.Code, Message: message(api)}
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
	if text = strings.Join(strings.Fields(text), " "); text == "" {
		text = fmt.Sprintf("HTTP %d", api.Code)
	}
	return fmt.Sprintf("%.200s", text)
}
