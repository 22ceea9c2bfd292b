package bucket

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// object is one generation of an object. It does not change once it is in a bucket's index: a new
// one takes its place.
type object struct {
	Name           string
	Generation     int64
	Metageneration int64
	Size           int64 // bytes
	CRC32C         uint32
	MD5            []byte `json:",omitempty"` // nil for a composite object
	Components     int    `json:",omitempty"` // of a composite object, else 0
	Created        time.Time
	Updated        time.Time
	Upload         string    `json:",omitempty"` // the resumable upload that made it
	Deleted        time.Time `json:",omitzero"`  // when it became noncurrent
	SoftDeleted    time.Time `json:",omitzero"`  // when it was deleted for good, but can be restored
	HardDelete     time.Time `json:",omitzero"`  // when it goes
	Attributes     attributes
	Pieces         []piece // its bytes, in order
}

// piece is a run of an object's bytes: the first Size bytes of a blob.
type piece struct {
	Blob    string
	Size    int64 // bytes
	Dropped bool  `json:",omitempty"` // see Server.Discard: the blob is empty
}

// objectResource is the JSON API's object (https://cloud.google.com/storage/docs/json_api/v1/objects).
type objectResource struct {
	Kind           string `json:"kind"`
	ID             string `json:"id"`
	SelfLink       string `json:"selfLink"`
	MediaLink      string `json:"mediaLink"`
	Name           string `json:"name"`
	Bucket         string `json:"bucket"`
	Generation     string `json:"generation"`
	Metageneration string `json:"metageneration"`
	Size           string `json:"size"`
	MD5Hash        string `json:"md5Hash,omitempty"`
	CRC32C         string `json:"crc32c"`
	ETag           string `json:"etag"`
	ComponentCount int    `json:"componentCount,omitempty"`
	TimeCreated    string `json:"timeCreated"`
	Updated        string `json:"updated"`
	TimeFinalized  string `json:"timeFinalized"`
	TimeClass      string `json:"timeStorageClassUpdated"`
	TimeDeleted    string `json:"timeDeleted,omitempty"`
	SoftDeleteTime string `json:"softDeleteTime,omitempty"`
	HardDeleteTime string `json:"hardDeleteTime,omitempty"`
	attributes
}

// resource returns o as the JSON API shows it to who sent r.
func (o *object) resource(r *http.Request, bucket string) objectResource {
	path := "b/" + bucket + "/o/" + url.PathEscape(o.Name)
	generation := itoa(o.Generation)
	return objectResource{
		Kind:           "storage#object",
		ID:             bucket + "/" + o.Name + "/" + generation,
		SelfLink:       baseURL(r) + "/storage/v1/" + path,
		MediaLink:      baseURL(r) + "/download/storage/v1/" + path + "?generation=" + generation + "&alt=media",
		Name:           o.Name,
		Bucket:         bucket,
		Generation:     generation,
		Metageneration: itoa(o.Metageneration),
		Size:           itoa(o.Size),
		MD5Hash:        base64.StdEncoding.EncodeToString(o.MD5),
		CRC32C:         encodeCRC(o.CRC32C),
		ETag:           etag(o.Generation, o.Metageneration),
		ComponentCount: o.Components,
		TimeCreated:    formatTime(o.Created),
		Updated:        formatTime(o.Updated),
		TimeFinalized:  formatTime(o.Created),
		TimeClass:      formatTime(o.Created),
		TimeDeleted:    formatTime(o.Deleted),
		SoftDeleteTime: formatTime(o.SoftDeleted),
		HardDeleteTime: formatTime(o.HardDelete),
		attributes:     o.Attributes,
	}
}

// etag returns the JSON API's entity tag: the two numbers as the service packs them.
func etag(generation, metageneration int64) string {
	b := binary.AppendUvarint([]byte{0x08}, uint64(generation))
	b = binary.AppendUvarint(append(b, 0x10), uint64(metageneration))
	return base64.StdEncoding.EncodeToString(b)
}

// encodeCRC returns a sum as the service writes it: big-endian, base64.
func encodeCRC(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

func decodeCRC(s string) (uint32, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 4 {
		return 0, errInvalid("Invalid CRC32C: %s", clip(s))
	}
	return binary.BigEndian.Uint32(b), nil
}

func decodeMD5(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 16 {
		return nil, errInvalid("Invalid MD5: %s", clip(s))
	}
	return b, nil
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// formatTime is "" for the zero time.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// baseURL returns the URL of this server in the client's words.
func baseURL(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
