package bucket_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// answer is what came back for one plain request.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

// ask sends one request; headers are "Name: value".
func (h *host) ask(t testing.TB, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	a, err := h.try(method, path, bytes.NewReader(body), headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (h *host) try(method, path string, body io.Reader, headers ...string) (answer, error) {
	if !strings.HasPrefix(path, "http") {
		path = h.URL + path
	}
	req, err := http.NewRequest(method, path, body)
	if err != nil {
		return answer{}, err
	}
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		req.Header.Set(k, v)
	}
	resp, err := h.http.Transport.RoundTrip(req) // redirects and 308 are answers here
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, data, err}, nil
}

// want fails the test unless a has a status; it returns a.
func (a answer) want(t testing.TB, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

// resource is the part of an object or bucket resource that tests look at.
type resource struct {
	Name, Generation, Metageneration, Size, MD5Hash, CRC32C, ContentType, StorageClass string
	ComponentCount                                                                     int
	Metadata                                                                           map[string]string
	Error                                                                              struct {
		Code    int
		Message string
		Errors  []struct{ Reason string }
	}
}

func (a answer) resource(t testing.TB) resource {
	t.Helper()
	var r resource
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return r
}

// upload stores an object in one request.
func (h *host) upload(t testing.TB, object string, data []byte) resource {
	t.Helper()
	return h.ask(t, "POST", "/upload/storage/v1/b/"+name+"/o?uploadType=media&name="+object, data).want(t, 200).resource(t)
}

// begin opens a resumable upload and returns its URL.
func (h *host) begin(t testing.TB, object string, headers ...string) string {
	t.Helper()
	return h.ask(t, "POST", "/upload/storage/v1/b/"+name+"/o?uploadType=resumable&name="+object, nil, headers...).want(t, 200).header.Get("Location")
}

// chunk sends bytes [from, to) of data to an upload; total is "*" or a number.
func (h *host) chunk(t testing.TB, url string, data []byte, from, to int, total string, headers ...string) answer {
	t.Helper()
	return h.ask(t, "PUT", url, data[from:to], append(headers, fmt.Sprintf("Content-Range: bytes %d-%d/%s", from, to-1, total))...)
}

// leftovers lists the files below a server's directory, by folder.
func leftovers(t testing.TB, dir string) string {
	t.Helper()
	count := map[string]int{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" && d.Name() != "bucket.json" {
			rel, _ := filepath.Rel(dir, filepath.Dir(path))
			count[rel]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for folder, n := range count {
		list = append(list, fmt.Sprintf("%s %d", folder, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}
