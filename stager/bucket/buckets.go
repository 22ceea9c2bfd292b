package bucket

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bucketAttributes is what is stored about a bucket. Its numbers serve bucket preconditions.
type bucketAttributes struct {
	Created        time.Time
	Updated        time.Time
	Metageneration int64
	Location       string
	StorageClass   string
	Labels         map[string]string `json:",omitempty"`
	Policy
}

func newBucketAttributes(now time.Time) bucketAttributes {
	return bucketAttributes{Created: now.UTC(), Updated: now.UTC(), Metageneration: 1, Location: "US", StorageClass: "STANDARD"}
}

// bucketResource is the JSON API's bucket (https://cloud.google.com/storage/docs/json_api/v1/buckets).
type bucketResource struct {
	Kind             string            `json:"kind"`
	ID               string            `json:"id"`
	SelfLink         string            `json:"selfLink"`
	Name             string            `json:"name"`
	ProjectNumber    string            `json:"projectNumber"`
	Metageneration   string            `json:"metageneration"`
	Location         string            `json:"location"`
	LocationType     string            `json:"locationType"`
	StorageClass     string            `json:"storageClass"`
	ETag             string            `json:"etag"`
	TimeCreated      string            `json:"timeCreated"`
	Updated          string            `json:"updated"`
	Labels           map[string]string `json:"labels,omitempty"`
	IAMConfiguration any               `json:"iamConfiguration"`
	policyResource
}

func (b *bucket) resource(r *http.Request) bucketResource {
	type access struct {
		Enabled bool `json:"enabled"`
	}
	return bucketResource{
		Kind: "storage#bucket", ID: b.Name, Name: b.Name, ProjectNumber: "0",
		SelfLink:       baseURL(r) + "/storage/v1/b/" + b.Name,
		Metageneration: itoa(b.Metageneration), ETag: etag(0, b.Metageneration),
		Location: b.Location, LocationType: "multi-region", StorageClass: b.StorageClass,
		TimeCreated: formatTime(b.Created), Updated: formatTime(b.Updated), Labels: b.Labels,
		IAMConfiguration: map[string]access{"uniformBucketLevelAccess": {true}},
		policyResource:   b.Policy.resource(),
	}
}

// createBucket makes an empty bucket.
func (s *Server) createBucket(name string, a bucketAttributes) (*bucket, error) {
	if err := checkBucketName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] != nil {
		return nil, &apiError{
			status: http.StatusConflict, reason: "conflict", code: "BucketAlreadyOwnedByYou",
			message: "Your previous request to create the named bucket succeeded and you already own it.",
		}
	}
	dir := filepath.Join(s.dir, name)
	b, err := openBucket(dir, name)
	if err != nil {
		return nil, err
	}
	if a.Location != "" {
		b.Location = a.Location
	}
	if a.StorageClass != "" {
		b.StorageClass = a.StorageClass
	}
	b.Labels, b.Policy = a.Labels, a.Policy
	if err := b.saveAttributes(); err != nil {
		return nil, err
	}
	s.buckets[name] = b
	return b, nil
}

func (b *bucket) saveAttributes() error {
	return writeRecord(filepath.Join(b.dir, "bucket.json"), b.bucketAttributes)
}

// insertBucket answers POST /storage/v1/b.
func (s *Server) insertBucket(w http.ResponseWriter, r *http.Request, rt route) error {
	body, err := decodeBody(r.Body)
	if err != nil {
		return err
	}
	var a bucketAttributes
	if err := a.apply(body); err != nil {
		return err
	}
	b, err := s.createBucket(body.text("name"), a)
	if err != nil {
		return err
	}
	return s.answerBucket(w, r, b)
}

// apply changes a as a bucket resource says.
func (a *bucketAttributes) apply(body objectBody) error {
	var v struct{ Enabled bool }
	if json.Unmarshal(body["hierarchicalNamespace"], &v) == nil && v.Enabled {
		return errUnsupported("hierarchicalNamespace")
	}
	if err := a.Policy.apply(body); err != nil {
		return err
	}
	if v := body.text("location"); v != "" {
		a.Location = strings.ToUpper(v)
	}
	if v := body.text("storageClass"); v != "" {
		a.StorageClass = v
	}
	if raw, ok := body["labels"]; ok {
		var labels attributes // labels merge as an object's metadata does
		labels.Metadata = a.Labels
		if err := labels.mergeMetadata(raw); err != nil {
			return errInvalid("Invalid value for field labels.")
		}
		a.Labels = labels.Metadata
	}
	return nil
}

func (s *Server) answerBucket(w http.ResponseWriter, r *http.Request, b *bucket) error {
	s.mu.RLock()
	res := b.resource(r)
	s.mu.RUnlock()
	w.Header().Set("ETag", res.ETag)
	return writeJSON(w, http.StatusOK, res)
}

// conditionalBucket returns a bucket if r's metageneration conditions hold. The caller holds mu.
func (s *Server) conditionalBucket(r *http.Request, rt route) (*bucket, error) {
	b, err := s.lookup(rt.bucket)
	if err != nil {
		return nil, err
	}
	cond, err := requestConditions(r)
	if err != nil {
		return nil, err
	}
	as := &object{Metageneration: b.Metageneration}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return b, cond.forRead(as)
	}
	return b, cond.forWrite(as)
}

func (s *Server) getBucket(w http.ResponseWriter, r *http.Request, rt route) error {
	s.mu.RLock()
	b, err := s.conditionalBucket(r, rt)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	return s.answerBucket(w, r, b)
}

// patchBucket answers PATCH and PUT of a bucket: labels, storage class and policies can change.
func (s *Server) patchBucket(w http.ResponseWriter, r *http.Request, rt route) error {
	body, err := decodeBody(r.Body)
	if err != nil {
		return err
	}
	b, err := s.changeBucket(r, rt, body)
	if err != nil {
		return err
	}
	return s.answerBucket(w, r, b)
}

func (s *Server) changeBucket(r *http.Request, rt route, body objectBody) (*bucket, error) {
	delete(body, "location") // a bucket does not move
	return s.alterBucket(r, rt, func(a *bucketAttributes) error { return a.apply(body) })
}

// alterBucket gives a bucket other attributes and the next metageneration.
func (s *Server) alterBucket(r *http.Request, rt route, change func(*bucketAttributes) error) (*bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.conditionalBucket(r, rt)
	if err != nil {
		return nil, err
	}
	a := b.bucketAttributes
	if err := change(&a); err != nil {
		return nil, err
	}
	a.Metageneration++
	a.Updated = time.Now().UTC()
	b.bucketAttributes = a
	return b, b.saveAttributes()
}

// deleteBucket answers DELETE of a bucket, which must be empty.
func (s *Server) deleteBucket(w http.ResponseWriter, r *http.Request, rt route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.conditionalBucket(r, rt)
	if err != nil {
		return err
	}
	b.expire(time.Now())
	if len(b.objects)+len(b.older) > 0 { // here no bucket is soft-deleted with its objects
		return &apiError{status: http.StatusConflict, reason: "conflict", code: "BucketNotEmpty", message: "The bucket you tried to delete is not empty."}
	}
	for _, u := range b.sessions {
		u.gone = true
	}
	delete(s.buckets, b.Name)
	if err := os.RemoveAll(b.dir); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// listBuckets answers GET /storage/v1/b.
func (s *Server) listBuckets(w http.ResponseWriter, r *http.Request, rt route) error {
	page := struct {
		Kind  string           `json:"kind"`
		Items []bucketResource `json:"items,omitempty"`
	}{Kind: "storage#buckets"}
	s.mu.RLock()
	for name, b := range s.buckets {
		if strings.HasPrefix(name, r.URL.Query().Get("prefix")) {
			page.Items = append(page.Items, b.resource(r))
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(page.Items, func(a, b bucketResource) int { return strings.Compare(a.Name, b.Name) })
	return writeJSON(w, http.StatusOK, page)
}
