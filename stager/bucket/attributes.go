package bucket

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// maxMetadataBytes is how much custom metadata an object takes
// (https://cloud.google.com/storage/quotas#objects).
const maxMetadataBytes = 8 << 10

// attributes is what a client may say about an object.
type attributes struct {
	ContentType        string            `json:"contentType,omitempty"`
	ContentEncoding    string            `json:"contentEncoding,omitempty"`
	ContentDisposition string            `json:"contentDisposition,omitempty"`
	ContentLanguage    string            `json:"contentLanguage,omitempty"`
	CacheControl       string            `json:"cacheControl,omitempty"`
	StorageClass       string            `json:"storageClass,omitempty"`
	CustomTime         string            `json:"customTime,omitempty"`
	EventBasedHold     bool              `json:"eventBasedHold,omitempty"`
	TemporaryHold      bool              `json:"temporaryHold,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
}

// declared is what a client says that the bytes will be; nil where it says nothing.
type declared struct {
	CRC32C *uint32
	MD5    []byte
	Size   *int64
}

// objectBody is an object resource that a client sent: names, hashes and raw fields to apply.
type objectBody map[string]json.RawMessage

// apply changes a as the fields of body say: null clears a field, metadata is merged key by key.
// What is not the client's to set is ignored, as the service does.
func (a *attributes) apply(body objectBody) error {
	texts := map[string]*string{
		"contentType": &a.ContentType, "contentEncoding": &a.ContentEncoding, "contentDisposition": &a.ContentDisposition,
		"contentLanguage": &a.ContentLanguage, "cacheControl": &a.CacheControl, "storageClass": &a.StorageClass, "customTime": &a.CustomTime,
	}
	flags := map[string]*bool{"eventBasedHold": &a.EventBasedHold, "temporaryHold": &a.TemporaryHold}
	for field, raw := range body {
		var err error
		if p := texts[field]; p != nil {
			*p = ""
			err = json.Unmarshal(raw, p)
		} else if p := flags[field]; p != nil {
			*p = false
			err = json.Unmarshal(raw, p)
		} else if field == "metadata" {
			err = a.mergeMetadata(raw)
		}
		if err != nil {
			return errInvalid("Invalid value for field %s.", clip(field))
		}
	}
	return a.check()
}

func (a *attributes) mergeMetadata(raw json.RawMessage) error {
	var change map[string]*string
	if err := json.Unmarshal(raw, &change); err != nil {
		return err
	}
	if change == nil {
		a.Metadata = nil
		return nil
	}
	merged := make(map[string]string, len(a.Metadata)+len(change))
	for k, v := range a.Metadata {
		merged[k] = v
	}
	for k, v := range change {
		if v == nil {
			delete(merged, k)
		} else {
			merged[k] = *v
		}
	}
	a.Metadata = merged
	return nil
}

func (a *attributes) check() error {
	n := 0
	for k, v := range a.Metadata {
		n += len(k) + len(v)
	}
	if n > maxMetadataBytes {
		return errInvalid("The total size of custom metadata exceeds %d bytes.", maxMetadataBytes)
	}
	if a.StorageClass == "" {
		a.StorageClass = "STANDARD"
	}
	if a.CustomTime != "" {
		if _, err := time.Parse(time.RFC3339, a.CustomTime); err != nil {
			return errInvalid("Invalid value for field customTime.")
		}
	}
	return nil
}

// customTime is zero where none is set.
func (a *attributes) customTime() time.Time {
	t, _ := time.Parse(time.RFC3339, a.CustomTime) // checked when it was set
	return t
}

// text returns a field of body that is a string, or "".
func (body objectBody) text(field string) string {
	var s string
	if json.Unmarshal(body[field], &s) != nil {
		return ""
	}
	return s
}

// hashes returns what body declares of the bytes.
func (body objectBody) hashes() (declared, error) {
	var d declared
	if s := body.text("crc32c"); s != "" {
		sum, err := decodeCRC(s)
		if err != nil {
			return d, err
		}
		d.CRC32C = &sum
	}
	if s := body.text("md5Hash"); s != "" {
		sum, err := decodeMD5(s)
		if err != nil {
			return d, err
		}
		d.MD5 = sum
	}
	return d, nil
}

// addHeaders adds what X-Goog-Hash and Content-MD5 declare; a second, different word is refused.
func (d *declared) addHeaders(h http.Header) error {
	for _, line := range h.Values("X-Goog-Hash") {
		for item := range strings.SplitSeq(line, ",") {
			kind, value, _ := strings.Cut(strings.TrimSpace(item), "=")
			if err := d.add(kind, value); err != nil {
				return err
			}
		}
	}
	if v := h.Get("Content-MD5"); v != "" {
		return d.add("md5", v)
	}
	return nil
}

func (d *declared) add(kind, value string) error {
	switch kind {
	case "crc32c":
		sum, err := decodeCRC(value)
		if err != nil {
			return err
		}
		if d.CRC32C != nil && *d.CRC32C != sum {
			return errInvalid("Two different CRC32C values were provided.")
		}
		d.CRC32C = &sum
	case "md5":
		sum, err := decodeMD5(value)
		if err != nil {
			return err
		}
		if d.MD5 != nil && string(d.MD5) != string(sum) {
			return errInvalid("Two different MD5 values were provided.")
		}
		d.MD5 = sum
	}
	return nil
}

// check compares the bytes that came with what was declared of them.
func (d *declared) check(n int64, crc uint32, md5 []byte) error {
	if d.Size != nil && *d.Size != n {
		return errInvalid("Uploaded %d bytes, but %d bytes were declared.", n, *d.Size)
	}
	if d.CRC32C != nil && *d.CRC32C != crc {
		return badDigest("Provided CRC32C \"%s\" doesn't match calculated CRC32C \"%s\".", encodeCRC(*d.CRC32C), encodeCRC(crc))
	}
	if d.MD5 != nil && string(d.MD5) != string(md5) {
		return badDigest("Provided MD5 hash \"%s\" doesn't match calculated MD5 hash \"%s\".", encode64(d.MD5), encode64(md5))
	}
	return nil
}

func badDigest(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, reason: "invalid", code: "BadDigest", message: fmt.Sprintf(format, args...)}
}

// headerAttributes returns what the headers of an XML request say about an object.
func headerAttributes(h http.Header) (attributes, error) {
	a := attributes{
		ContentType:        h.Get("Content-Type"),
		ContentEncoding:    strings.TrimPrefix(h.Get("Content-Encoding"), "identity"),
		ContentDisposition: h.Get("Content-Disposition"),
		ContentLanguage:    h.Get("Content-Language"),
		CacheControl:       h.Get("Cache-Control"),
		StorageClass:       h.Get("X-Goog-Storage-Class"),
		CustomTime:         h.Get("X-Goog-Custom-Time"),
	}
	const prefix = "X-Goog-Meta-"
	for name, values := range h {
		if key, ok := strings.CutPrefix(name, prefix); ok {
			if a.Metadata == nil {
				a.Metadata = map[string]string{}
			}
			a.Metadata[strings.ToLower(key)] = strings.Join(values, ",")
		}
	}
	return a, a.check()
}
