package hf

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/headstart-serving/headstart/stager"
)

// retrying tells of a request that is made again after wait: because of the answer, if there was one,
// else because of err.
func (s *Source) retrying(answer *http.Response, wait time.Duration, err error) {
	if s.Retrying == nil {
		return
	}
	cause := stager.Connection
	var l *lost
	switch {
	case answer != nil && answer.StatusCode == http.StatusTooManyRequests:
		cause, err = stager.RateLimit, errors.New("rate limit")
	case answer != nil && answer.StatusCode >= 400: // else its body broke off
		cause, err = stager.Status, fmt.Errorf("status %d", answer.StatusCode)
	case errors.Is(err, errStalled):
		cause = stager.Stalled
	case errors.As(err, &l) && l.stale:
		cause = stager.Stale
	}
	s.Retrying(stager.Retry{Of: "hub", Cause: cause, Wait: wait, Err: err})
}
