package main

import (
	"errors"
	"testing"

	"github.com/spf13/cobra"
)

func TestParseBucket(t *testing.T) {
	for s, want := range map[string]string{
		"gs://models":          "gs://models",
		"gs://models/":         "gs://models",
		"gs://models/a/b/":     "gs://models/a/b",
		"file:///srv/models":   "file:///srv/models",
		"file:///srv/models//": "file:///srv/models",
	} {
		if u, err := parseBucket(s); err != nil || u.String() != want {
			t.Errorf("%s: %s, %v; want %s", s, u, err, want)
		}
	}
	for _, s := range []string{"", "models", "gs://", "gs:///a", "s3://models", "file://models", "file:models", "gs://u:p@models", "gs://models?x=1", "gs://models/a/../../b", "gs://models:80", "gs://\x00"} {
		if u, err := parseBucket(s); err == nil {
			t.Errorf("%q is accepted as %s", s, u)
		}
	}
}

func TestBucketFlagBeforeEnvironment(t *testing.T) {
	env := map[string]string{}
	cmd := &cobra.Command{}
	bucket := bucketFlag(cmd, process{Getenv: func(k string) string { return env[k] }})
	var usage usageError
	if _, err := bucket(); !errors.As(err, &usage) {
		t.Errorf("no bucket: %v, want an error of usage", err)
	}
	env["HEADSTART_BUCKET"] = "gs://env"
	if u, err := bucket(); err != nil || u.Name != "env" {
		t.Errorf("%s, %v", u, err)
	}
	if err := cmd.Flags().Set("bucket", "gs://flag"); err != nil {
		t.Fatal(err)
	}
	if u, err := bucket(); err != nil || u.Name != "flag" {
		t.Errorf("%s, %v", u, err)
	}
}
