package main

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// bucketURL is where models are staged: gs://NAME[/PREFIX], or file:///DIR for a local disk, NFS,
// Managed Lustre or a mounted disk.
type bucketURL struct {
	Scheme string // "gs" or "file"
	Name   string // of a Cloud Storage bucket
	Prefix string // below the bucket, "" or ending in "/"
	Dir    string // of a file bucket

	GRPC bool // how to read a Cloud Storage bucket
}

func (u bucketURL) String() string {
	if u.Scheme == "file" {
		return "file://" + u.Dir
	}
	return "gs://" + u.Name + strings.TrimSuffix("/"+u.Prefix, "/")
}

// source names where chunks come from, in metrics and logs.
func (u bucketURL) source() string {
	if u.GRPC {
		return u.Scheme + "-grpc"
	}
	return u.Scheme
}

// bucketFlag adds --bucket to a command and returns what reads it, or HEADSTART_BUCKET, when it runs.
func bucketFlag(cmd *cobra.Command, p process) func() (bucketURL, error) {
	flag := cmd.Flags().String("bucket", "", "bucket of the staged models: gs://NAME[/PREFIX] or file:///DIR (default $HEADSTART_BUCKET)")
	return func() (bucketURL, error) {
		s := *flag
		if s == "" {
			s = p.Getenv("HEADSTART_BUCKET")
		}
		u, err := parseBucket(s)
		if err != nil {
			return bucketURL{}, usageError{err}
		}
		return u, nil
	}
}

// sourceFlags is bucketFlag for commands that read models: it adds --transport.
func sourceFlags(cmd *cobra.Command, p process) func() (bucketURL, error) {
	bucket := bucketFlag(cmd, p)
	transport := cmd.Flags().String("transport", "http", "how to read from Cloud Storage: http, or grpc, which takes DirectPath where it can")
	return func() (bucketURL, error) {
		u, err := bucket()
		if err != nil {
			return bucketURL{}, err
		}
		switch {
		case *transport == "grpc" && u.Scheme == "gs":
			u.GRPC = true
		case *transport == "grpc":
			return bucketURL{}, usageError{fmt.Errorf("--transport grpc is for gs:// buckets, %s is none", u)}
		case *transport != "http":
			return bucketURL{}, usageError{fmt.Errorf("--transport %q is neither http nor grpc", *transport)}
		}
		return u, nil
	}
}

func parseBucket(s string) (bucketURL, error) {
	if s == "" {
		return bucketURL{}, errors.New("no bucket: give --bucket gs://NAME or file:///DIR, or set HEADSTART_BUCKET")
	}
	u, err := url.Parse(s)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Port() != "" {
		return bucketURL{}, fmt.Errorf("bucket %q is not a URL of the form gs://NAME[/PREFIX] or file:///DIR", s)
	}
	switch {
	case u.Scheme == "gs" && u.Host != "":
		prefix := strings.Trim(u.Path, "/")
		if prefix != "" && (path.Clean(prefix) != prefix || strings.HasPrefix(prefix, "..")) {
			return bucketURL{}, fmt.Errorf("bucket %q: the prefix is not a clean path", s)
		}
		if prefix != "" {
			prefix += "/"
		}
		return bucketURL{Scheme: "gs", Name: u.Host, Prefix: prefix}, nil
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		return bucketURL{Scheme: "file", Dir: filepath.Clean(u.Path)}, nil
	}
	return bucketURL{}, fmt.Errorf("bucket %q is not a URL of the form gs://NAME[/PREFIX] or file:///DIR (an absolute path)", s)
}
