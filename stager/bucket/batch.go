package bucket

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
)

// maxBatch is how many requests one batch takes (https://cloud.google.com/storage/docs/batch).
const maxBatch = 100

// maxBatchBody bounds a batch in bytes; the service says 10 MB.
const maxBatchBody = 10 << 20

// batch answers POST /batch/storage/v1: several requests without media in one multipart/mixed body.
func (s *Server) batch(w http.ResponseWriter, r *http.Request, rt route) error {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" || r.Method != http.MethodPost {
		return errInvalid("A batch is a POST of a multipart/mixed body.")
	}
	parts := multipart.NewReader(http.MaxBytesReader(w, r.Body, maxBatchBody), params["boundary"])
	var body bytes.Buffer
	answers := multipart.NewWriter(&body)
	for n := 0; ; n++ {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return malformed(err, "Malformed batch.")
		}
		if n == maxBatch {
			return errInvalid("The batch has more than %d requests.", maxBatch)
		}
		if err := s.batchPart(r, part, answers); err != nil {
			return err
		}
	}
	if err := answers.Close(); err != nil {
		return err
	}
	return writeBody(w, http.StatusOK, "multipart/mixed; boundary="+answers.Boundary(), body.Bytes())
}

// batchPart serves one request of a batch and adds its answer.
func (s *Server) batchPart(outer *http.Request, part *multipart.Part, answers *multipart.Writer) error {
	inner, err := http.ReadRequest(bufio.NewReader(part))
	if err != nil {
		return errInvalid("Malformed request in a batch.")
	}
	inner = inner.WithContext(outer.Context())
	inner.Host = outer.Host
	answer := &bufferedAnswer{header: http.Header{}}
	if rt, err := findRoute(inner); err != nil || rt.op == "batch" || rt.op == "storage.objects.insert" || inner.URL.Query().Get("alt") == "media" {
		writeError(answer, inner, route{}, errInvalid("This request cannot be part of a batch."))
	} else {
		s.ServeHTTP(answer, inner)
	}
	head := textproto.MIMEHeader{"Content-Type": {"application/http"}}
	if id := part.Header.Get("Content-Id"); id != "" {
		head.Set("Content-Id", "<response-"+trimBrackets(id)+">")
	}
	out, err := answers.CreatePart(head)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "HTTP/1.1 %d %s\r\n", answer.status, http.StatusText(answer.status))
	answer.header.Write(out)
	fmt.Fprint(out, "\r\n")
	_, err = out.Write(answer.body.Bytes())
	return err
}

func trimBrackets(id string) string {
	if len(id) > 1 && id[0] == '<' && id[len(id)-1] == '>' {
		return id[1 : len(id)-1]
	}
	return id
}

// bufferedAnswer keeps one answer of a batch.
type bufferedAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *bufferedAnswer) Header() http.Header { return a.header }

func (a *bufferedAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *bufferedAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}
