package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/control"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

// learner is a node that has learnt something.
type learner struct {
	control.Node
	data []byte
}

func (l *learner) Order(_ context.Context, ref manifest.Reference) ([]byte, error) {
	if l.data == nil {
		return nil, fetch.Fail(fs.ErrNotExist, "no order of %s was learnt here", ref)
	}
	return l.data, nil
}

func (l *learner) Status() loader.Status { return loader.Status{} }

func TestOrderCommand(t *testing.T) {
	m := fetchtest.NewModel(t, "acme/tiny", map[string]int{"config.json": 9, "model.safetensors": 40 * fetchtest.ChunkSize})
	bucket := t.TempDir()
	for key, data := range m.Objects {
		path := filepath.Join(bucket, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	node := &learner{}
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- control.New(node, slog.New(slog.DiscardHandler)).Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	ask := func(args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = run(t.Context(), append([]string{"order", "acme/tiny", "--socket", socket, "--bucket", "file://" + bucket}, args...), process{Getenv: func(string) string { return "" }, Stdout: &out, Stderr: &errs})
		return code, out.String(), errs.String()
	}
	inBucket := func() string {
		data, _ := os.ReadFile(filepath.Join(bucket, filepath.FromSlash(m.Manifest.Model.OrderKey())))
		return string(data)
	}
	marshal := func(chunks ...int) []byte {
		data, err := order.Marshal(chunks, m.Manifest, manifest.Sum(m.Raw))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}

	if code, out, errs := ask("--push"); code != exitNotFound || out != "" || !strings.Contains(errs, "was learnt here") {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	node.data = marshal(0, 1, 2, 30, 29)
	want := fmt.Sprintf("%s: 5 of 41 chunks, in 3 runs\n   3 chunks from config.json at 0 B\n   1 chunks from model.safetensors at 1.9 MB\n   1 chunks from model.safetensors at 1.8 MB\n", m.Manifest.Model)
	if code, out, errs := ask(); code != 0 || out != want || errs != "" || inBucket() != "" {
		t.Errorf("%d, %q, %q, want %q", code, out, errs, want)
	}
	if code, out, errs := ask("--push", "--json"); code != 0 || out != string(node.data) || errs != "" || inBucket() != string(node.data) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	node.data = marshal(40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0, 1)
	if code, out, errs := ask("--push"); code != 0 || !strings.Contains(out, "22 of 41 chunks, in 21 runs, in the bucket now") || !strings.Contains(out, "… and 1 more") || errs != "" || inBucket() != string(node.data) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	before := inBucket()
	node.data = bytes.Replace(node.data, []byte("[40,1]"), []byte("[41,1]"), 1)
	if code, out, errs := ask("--push"); code != exitMismatch || out != "" || !strings.Contains(errs, "the model has 41") || inBucket() != before {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}
