package gcs

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"github.com/headstart-serving/headstart/stager"
)

// again decides for the client whether a call is worth repeating, and tells of those that are. How long
// the client waits it keeps to itself. at is nil for the bytes of an upload, which write repeats.
func (s *Store) again(err error, at *storage.RetryContext) bool {
	if !storage.ShouldRetry(err) {
		return false
	}
	if at != nil {
		s.retrying(err, 0)
	}
	return true
}

// retrying tells of a request that is made again after wait.
func (s *Store) retrying(err error, wait time.Duration) {
	if s.Retrying == nil {
		return
	}
	r := stager.Retry{Of: "bucket", Cause: stager.Connection, Wait: wait, Err: err}
	var api *googleapi.Error
	switch {
	case errors.As(err, &api) && api.Code == http.StatusTooManyRequests:
		r.Cause, r.Err = stager.RateLimit, errors.New("rate limit")
	case errors.As(err, &api):
		r.Cause, r.Err = stager.Status, fmt.Errorf("status %d", api.Code)
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.Cause, r.Err = stager.Stalled, errors.New("nothing moved on the connection")
	}
	s.Retrying(r)
}
