package stager

import "time"

// Retry is a request of a source or a store that failed for a reason that may pass, and is made again.
// The adapters tell of each one, before they wait.
type Retry struct {
	Of    string        // who was asked: "hub" or "bucket"
	Cause Cause         // what went wrong
	Wait  time.Duration // before the next try; 0 also where it is not known
	Err   error         // for a person; it holds no secret
}

// Cause is why a request is made again. There are few, so that they can be a metric's label.
type Cause string

// The causes.
const (
	RateLimit  Cause = "rate_limit" // the server asks to come back later
	Status     Cause = "status"     // an answer that says that the server is at fault
	Stalled    Cause = "stalled"    // no byte came for too long
	Stale      Cause = "stale"      // a signed URL that is no longer good
	Connection Cause = "connection" // lost, refused, reset; or an answer that is not what was asked for
)
