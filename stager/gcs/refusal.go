package gcs

import (
	"net/http"
	"strings"
	"syscall"

	"google.golang.org/api/googleapi"

	"github.com/headstart-serving/headstart/stager"
)

// refused turns an answer whose status alone would mislead into what a person can do about it; nil for
// the others. A 403 is not always about permissions: the reason tells.
// https://cloud.google.com/storage/docs/json_api/v1/status-codes
func (s *Store) refused(key string, api *googleapi.Error) error {
	reason := ""
	if len(api.Errors) > 0 {
		reason = api.Errors[0].Reason
	}
	switch reason {
	case "retentionPolicyNotMet":
		return stager.Fail(stager.ErrRetained, "%s/%s is held by a retention policy (%s): wait until it has expired, or use a bucket or a prefix without one", s, key, oneLine(api))
	case "objectUnderActiveHold":
		return stager.Fail(stager.ErrRetained, "%s/%s is under a hold (%s): release the hold, or use another prefix", s, key, oneLine(api))
	case "accountDisabled":
		return stager.Fail(syscall.EDQUOT, "bucket gs://%s: the project's billing is off (%s): link the project to a billing account that is open", s.Bucket, oneLine(api))
	case "quotaExceeded", "dailyLimitExceeded", "userRateLimitExceeded", "rateLimitExceeded":
		return s.overQuota(api)
	}
	if api.Code == http.StatusForbidden && strings.Contains(api.Message, "under active hold") { // as the XML API says it
		return stager.Fail(stager.ErrRetained, "%s/%s is under a hold (%s): release the hold, or use another prefix", s, key, oneLine(api))
	}
	switch api.Code {
	case http.StatusTooManyRequests:
		return s.overQuota(api)
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return stager.Fail(syscall.EDQUOT, "%s/%s: the bucket takes nothing that large (%s): objects have 5 TiB at most", s, key, oneLine(api))
	}
	return nil
}

func (s *Store) overQuota(api *googleapi.Error) error {
	return stager.Fail(syscall.EDQUOT, "bucket gs://%s: a quota or a rate limit is used up (%s): wait and run again, or have it raised", s.Bucket, oneLine(api))
}
