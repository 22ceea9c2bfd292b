package bucket

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// Policy is what a bucket does with objects that are deleted or overwritten.
type Policy struct {
	Retention   time.Duration `json:",omitempty"` // an object that is younger stays; 0: none
	Effective   time.Time     `json:",omitzero"`  // since when there is a retention policy
	Locked      bool          `json:",omitempty"` // the retention policy cannot be shortened any more
	DefaultHold bool          `json:",omitempty"` // new objects have an event-based hold
	Versioning  bool          `json:",omitempty"` // what is deleted or overwritten becomes noncurrent
	SoftDelete  time.Duration `json:",omitempty"` // what is deleted for good can be restored for so long; 0: it is gone
}

// Bounds of the two durations (https://cloud.google.com/storage/docs/bucket-lock,
// https://cloud.google.com/storage/docs/soft-delete).
const (
	maxRetention  = 3155760000 * time.Second // 100 years
	minSoftDelete = 7 * 24 * time.Hour
	maxSoftDelete = 90 * 24 * time.Hour
)

// apply changes p as a bucket resource says.
func (p *Policy) apply(body objectBody) error {
	var enabled struct{ Enabled bool }
	if raw, ok := body["versioning"]; ok {
		if json.Unmarshal(raw, &enabled) != nil {
			return errInvalid("Invalid value for field versioning.")
		}
		p.Versioning = enabled.Enabled
	}
	if raw, ok := body["defaultEventBasedHold"]; ok && json.Unmarshal(raw, &p.DefaultHold) != nil {
		return errInvalid("Invalid value for field defaultEventBasedHold.")
	}
	if raw, ok := body["softDeletePolicy"]; ok {
		d, err := seconds(raw, "retentionDurationSeconds")
		if err != nil || d != 0 && (d < minSoftDelete || d > maxSoftDelete) {
			return errInvalid("Soft delete policy retention duration must be 0 or from 7 to 90 days.")
		}
		p.SoftDelete = d
	}
	if raw, ok := body["retentionPolicy"]; ok {
		return p.retain(raw)
	}
	return nil
}

func (p *Policy) retain(raw json.RawMessage) error {
	d, err := seconds(raw, "retentionPeriod")
	if err != nil || d < 0 || d > maxRetention {
		return errInvalid("Invalid value for field retentionPolicy.retentionPeriod.")
	}
	if p.Locked && d < p.Retention {
		return &apiError{status: http.StatusForbidden, reason: "forbidden", code: "AccessDenied", message: "Cannot reduce retention duration of a locked Retention Policy for bucket."}
	}
	if p.Retention == 0 {
		p.Effective = time.Now().UTC()
	}
	p.Retention = d
	return nil
}

// seconds reads a duration that is a number, or a string of digits, in a field of an object; null is 0.
func seconds(raw json.RawMessage, field string) (time.Duration, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields[field] == nil {
		return 0, err
	}
	var n json.Number
	if err := json.Unmarshal(fields[field], &n); err != nil {
		return 0, err
	}
	d, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || d < 0 || d > int64(maxRetention/time.Second) {
		return 0, errInvalid("Invalid value for field %s.", field)
	}
	return time.Duration(d) * time.Second, nil
}

// policyResource is how the JSON API shows a policy.
type policyResource struct {
	RetentionPolicy *struct {
		Period    string `json:"retentionPeriod"`
		Effective string `json:"effectiveTime"`
		Locked    bool   `json:"isLocked,omitempty"`
	} `json:"retentionPolicy,omitempty"`
	DefaultHold bool `json:"defaultEventBasedHold,omitempty"`
	Versioning  *struct {
		Enabled bool `json:"enabled"`
	} `json:"versioning,omitempty"`
	SoftDelete struct {
		Duration string `json:"retentionDurationSeconds"`
	} `json:"softDeletePolicy"`
}

func (p Policy) resource() policyResource {
	var r policyResource
	if p.Retention > 0 {
		r.RetentionPolicy = &struct {
			Period    string `json:"retentionPeriod"`
			Effective string `json:"effectiveTime"`
			Locked    bool   `json:"isLocked,omitempty"`
		}{itoa(int64(p.Retention / time.Second)), formatTime(p.Effective), p.Locked}
	}
	if p.Versioning {
		r.Versioning = &struct {
			Enabled bool `json:"enabled"`
		}{true}
	}
	r.DefaultHold = p.DefaultHold
	r.SoftDelete.Duration = itoa(int64(p.SoftDelete / time.Second))
	return r
}

// keeps reports, with the service's words, an object that may not go yet.
func (b *bucket) keeps(o *object) error {
	if o.Attributes.EventBasedHold || o.Attributes.TemporaryHold {
		return errHeld(b.Name, o.Name)
	}
	if until := o.retained(b.Retention); time.Now().Before(until) {
		return &apiError{
			status: http.StatusForbidden, reason: "retentionPolicyNotMet", code: "AccessDenied",
			message: "Object '" + b.Name + "/" + clip(o.Name) + "' is subject to bucket's retention policy or object retention and cannot be deleted or overwritten until " + until.Format(time.RFC3339Nano),
		}
	}
	return nil
}

// retained returns when a retention policy lets go of an object; the zero time without one.
func (o *object) retained(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return o.Created.Add(d)
}

// lockRetention answers POST …/lockRetentionPolicy, which is for ever.
func (s *Server) lockRetention(w http.ResponseWriter, r *http.Request, rt route) error {
	if r.URL.Query().Get("ifMetagenerationMatch") == "" {
		return errRequired("Required parameter: ifMetagenerationMatch")
	}
	b, err := s.alterBucket(r, rt, func(a *bucketAttributes) error {
		if a.Retention == 0 {
			return errInvalid("Bucket does not have a Retention Policy.")
		}
		a.Locked = true
		return nil
	})
	if err != nil {
		return err
	}
	return s.answerBucket(w, r, b)
}

// SetPolicy gives a bucket a policy in place of the one it has.
func (s *Server) SetPolicy(name string, p Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(name)
	if err != nil {
		return err
	}
	if b.Policy = p; p.Retention > 0 && p.Effective.IsZero() {
		b.Effective = time.Now().UTC()
	}
	return b.saveAttributes()
}
