package bucket

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"strconv"
)

func writeJSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeBody(w, status, "application/json; charset=UTF-8", data)
}

func writeXML(w http.ResponseWriter, status int, v any) error {
	data, err := xml.Marshal(v)
	if err != nil {
		return err
	}
	return writeBody(w, status, "application/xml; charset=UTF-8", append([]byte("<?xml version='1.0' encoding='UTF-8'?>"), data...))
}

func writeBody(w http.ResponseWriter, status int, kind string, data []byte) error {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, err := w.Write(data)
	return err
}

// recorder notes what is answered, and stays out of the way of sendfile.
type recorder struct {
	http.ResponseWriter
	wroteHeader bool
	note        func(status int)
	sent        int64 // bytes of the body
}

func (rec *recorder) WriteHeader(status int) {
	if status >= 200 && !rec.wroteHeader {
		rec.wroteHeader = true
		rec.note(status)
	}
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(b []byte) (int, error) {
	if !rec.wroteHeader {
		rec.WriteHeader(http.StatusOK)
	}
	n, err := rec.ResponseWriter.Write(b)
	rec.sent += int64(n)
	return n, err
}

func (rec *recorder) ReadFrom(r io.Reader) (int64, error) {
	if !rec.wroteHeader {
		rec.WriteHeader(http.StatusOK)
	}
	n, err := io.Copy(rec.ResponseWriter, r)
	rec.sent += n
	return n, err
}

// Unwrap is for [http.ResponseController].
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }
