package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/api/googleapi"

	"github.com/headstart-serving/headstart/stager"
)

// put sends an object from memory in one request, where the one that is there has the given generation, 0
// being none, and returns the generation that it made.
//
// It is the one call that does not go through the client. The client's Writer takes a stream: each byte goes
// through two pipes and a multipart encoder in pieces of 32 KiB, which costs more than the hashing. A PUT
// of the XML API says the same in headers: the generation that is expected, the CRC32C that the
// service compares before the object is visible, and the note.
// https://cloud.google.com/storage/docs/xml-api/put-object-upload
// https://cloud.google.com/storage/docs/xml-api/reference-headers
func (s *Store) put(ctx context.Context, key string, generation int64, p stager.Part, data [][]byte) (int64, error) {
	to := *s.xml
	to.Path = "/" + s.Bucket + "/" + s.Prefix + key
	to.RawPath = "/" + url.PathEscape(s.Bucket) + "/" + escape(s.Prefix+key)
	b := newBody(data)
	defer b.end()
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), b)
	if err != nil {
		return 0, err
	}
	if r.ContentLength = p.Size; p.Size == 0 {
		r.Body = http.NoBody
	}
	r.Header.Set("User-Agent", "headstart")
	r.Header.Set("Content-Type", "application/octet-stream")
	r.Header.Set("X-Goog-Hash", "crc32c="+encodeCRC(p.CRC32C))
	r.Header.Set("X-Goog-If-Generation-Match", strconv.FormatInt(generation, 10))
	if p.Note != nil {
		r.Header.Set("X-Goog-Meta-"+noteKey, string(p.Note))
	}
	answer, err := s.http.Do(r)
	if err != nil {
		return 0, err // with its class, which says whether another attempt makes sense
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxErrorBody))
	if answer.StatusCode != http.StatusOK {
		return 0, refusal(answer, text)
	}
	if err != nil {
		return 0, err // an answer of no bytes that is cut: it may not be the service's
	}
	return stored(answer, p)
}

// stored reads what the service says of an object that it has stored. What claims success and is about no
// object, or another one, has not done this; whether it was done shows when it is sent again.
func stored(answer *http.Response, p stager.Part) (int64, error) {
	generation, err := strconv.ParseInt(answer.Header.Get("X-Goog-Generation"), 10, 64)
	if err != nil || generation <= 0 {
		return 0, fmt.Errorf("%s answers to an upload without a generation: it is not Cloud Storage: check STORAGE_EMULATOR_HOST and proxies: %w", answer.Request.URL.Host, io.ErrUnexpectedEOF)
	}
	for _, line := range answer.Header.Values("X-Goog-Hash") {
		for sum := range strings.SplitSeq(line, ",") {
			if got, ok := strings.CutPrefix(strings.TrimSpace(sum), "crc32c="); ok && got != encodeCRC(p.CRC32C) {
				return 0, fmt.Errorf("%s answers to an upload with crc32c %.20q instead of %s: %w", answer.Request.URL.Host, got, encodeCRC(p.CRC32C), io.ErrUnexpectedEOF)
			}
		}
	}
	return generation, nil
}

// refusal is the service's answer in the form in which its client gives errors.
func refusal(answer *http.Response, text []byte) error {
	e := &googleapi.Error{Code: answer.StatusCode, Body: string(text), Header: answer.Header}
	var x struct{ Code, Message, Details string }
	var j struct {
		Error struct {
			Message string `json:"message"`
			Errors  []googleapi.ErrorItem
		} `json:"error"`
	}
	switch {
	case xml.Unmarshal(text, &x) == nil && x.Code != "":
		e.Message = strings.TrimSpace(x.Message + " " + x.Details)
		e.Errors = []googleapi.ErrorItem{{Reason: x.Code, Message: x.Message}}
	case json.Unmarshal(text, &j) == nil && j.Error.Message != "":
		e.Message, e.Errors = j.Error.Message, j.Error.Errors
	default:
		e.Message = http.StatusText(answer.StatusCode)
	}
	return e
}

func encodeCRC(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// escape makes an object's name a path in which nothing but its slashes has a meaning.
func escape(name string) string {
	segments := strings.Split(name, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return strings.Join(segments, "/")
}

// body is a request's body that lies in memory. A transport may hold on to a body after it has returned, so
// the memory is taken away from it by end, which waits for a Write or a Read that has begun.
type body struct {
	mu   sync.Mutex
	rest [][]byte
	over bool
}

func newBody(data [][]byte) *body { return &body{rest: append([][]byte(nil), data...)} }

var errOver = errors.New("the request is over")

// pass gives what is next, at most n bytes, to take, which says how many of them it took.
func (b *body) pass(n int, take func([]byte) (int, error)) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.over && len(b.rest) > 0 && len(b.rest[0]) == 0 {
		b.rest = b.rest[1:]
	}
	if b.over {
		return 0, errOver
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n, err := take(b.rest[0][:min(n, len(b.rest[0]))])
	b.rest[0] = b.rest[0][n:]
	return n, err
}

func (b *body) Read(p []byte) (int, error) {
	return b.pass(len(p), func(data []byte) (int, error) { return copy(p, data), nil })
}

func (b *body) Close() error { return nil }

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over, b.rest = true, nil
}
