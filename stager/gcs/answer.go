package gcs

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// checked is a transport that lets only answers of Cloud Storage through to the client, which believes
// every 200: a portal's page would be read as a manifest, and the document "null" makes it panic.
type checked struct{ next http.RoundTripper }

// maxDocument bounds a document of the JSON API in bytes: a page of 1000 objects with 8 KiB of metadata each
// has less than 16 MB.
const maxDocument = 64 << 20

func (c checked) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	if err != nil || answer.StatusCode >= 300 && answer.StatusCode != http.StatusNotModified {
		return answer, err
	}
	if err := check(r, answer); err != nil {
		answer.Body.Close()
		return nil, err
	}
	return answer, nil
}

// check looks at an answer that claims success. Its body is only looked at where it is a document.
func check(r *http.Request, answer *http.Response) error {
	document := strings.Contains(r.URL.Path, "/storage/v1/") && r.URL.Query().Get("alt") != "media"
	switch {
	case document && r.Method == http.MethodDelete:
		if answer.StatusCode != http.StatusNoContent && answer.StatusCode != http.StatusOK {
			return foreign(answer, "")
		}
		return nil
	case document:
		if answer.StatusCode != http.StatusOK {
			return foreign(answer, "")
		}
		return isObject(answer)
	case answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusPartialContent, answer.Header.Get("X-Goog-Generation") == "":
		return foreign(answer, "")
	}
	return nil
}

// isObject makes sure that the body begins as a JSON object does, and bounds it.
func isObject(answer *http.Response) error {
	body := bufio.NewReader(io.LimitReader(answer.Body, maxDocument))
	for {
		begins, err := body.Peek(1)
		if err != nil && err != io.EOF {
			return err // the connection's: it may be tried again
		}
		if len(begins) == 1 && bytes.ContainsAny(begins, " \t\r\n") {
			body.Discard(1) // it is there
			continue
		}
		if len(begins) == 0 || begins[0] != '{' {
			start, _ := body.Peek(60)
			return foreign(answer, string(start))
		}
		answer.Body = struct {
			io.Reader
			io.Closer
		}{body, answer.Body}
		return nil
	}
}

func foreign(answer *http.Response, start string) error {
	return stager.Fail(manifest.ErrInvalid, "the answer (status %d, %.40q, beginning with %.60q) does not come from Cloud Storage: check STORAGE_EMULATOR_HOST and proxies",
		answer.StatusCode, answer.Header.Get("Content-Type"), start)
}
