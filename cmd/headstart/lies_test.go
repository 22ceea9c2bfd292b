package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
)

// TestLies stages from a Hub that lies about one thing at a time: code 5, one line that names the
// entry, and nothing visible in the bucket.
func TestLies(t *testing.T) {
	root := t.TempDir()
	if err := writeModel(filepath.Join(root, "acme", "tiny")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, fault, want string }{
		{"traversal", "file-in-tree=..%2Fetc%2Fpasswd", "../etc/passwd"},
		{"absolute", "file-in-tree=%2Fetc%2Fpasswd", "/etc/passwd"},
		{"NUL", "file-in-tree=a%00b.json", `a\x00b.json`},
		{"long", "file-in-tree=" + strings.Repeat("n", 5000), "5000"},
		{"case", "file-in-tree=CONFIG.json", "by case only"},
		{"own", "file-in-tree=.headstart%2Fx.json", ".headstart"},
		{"symlink", "type-in-tree=symlink", "symlink"},
		{"size of a large file", "wrong-size-in-tree", "size"},
		{"size below zero", "size-in-tree=-1", "-1"},
		{"size above int64", "size-in-tree=9223372036854775808", ""},
		{"sha256", "wrong-sha256-in-tree", "model.safetensors"},
		{"sha1", "wrong-sha1-in-tree", "sha1"},
		{"commit", "wrong-commit", "commit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, err := hub.NewDir(root)
			if err != nil {
				t.Fatal(err)
			}
			h := hub.New(hub.Config{Find: dir})
			b, err := bucket.New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if err := b.CreateBucket("models"); err != nil {
				t.Fatal(err)
			}
			api, cdn, objects := httptest.NewServer(h.Handler()), httptest.NewServer(h.CDN()), httptest.NewServer(b)
			defer api.Close()
			defer cdn.Close()
			defer objects.Close()
			h.SetCDN(cdn.URL)
			env := map[string]string{"HF_ENDPOINT": api.URL, "STORAGE_EMULATOR_HOST": objects.URL, "HEADSTART_BUCKET": "gs://models"}
			t.Setenv("STORAGE_EMULATOR_HOST", objects.URL) // the storage client looks there itself
			headstart := func(args ...string) (int, string, string) {
				var stdout, stderr bytes.Buffer
				code := run(context.Background(), args, process{Getenv: func(k string) string { return env[k] }, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr})
				return code, stdout.String(), stderr.String()
			}
			env["HF_HOME"] = t.TempDir()

			h.Plan(func(*http.Request) bool { return true }, always(test.fault)...)
			code, _, stderr := headstart("stage", "acme/tiny")
			last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]
			if code != exitMismatch || !strings.Contains(last, test.want) || len(last) > 600 {
				t.Errorf("code %d, want %d with %q: %s", code, exitMismatch, test.want, stderr)
			}
			if _, stdout, _ := headstart("ls"); !strings.Contains(stdout, "no model is staged") {
				t.Errorf("something was committed: %s", stdout)
			}
		})
	}
}

func always(fault string) []string {
	faults := make([]string, 1000)
	for i := range faults {
		faults[i] = fault
	}
	return faults
}
