package staging

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub"
)

// TestMain is also hf and rclone, when it is called by their names.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	if run, ok := map[string]func() error{"hf": fakeHF, "rclone": fakeRclone}[name]; ok {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// built is the folder of the binary, once there is one.
var built string

// headstart builds headstart once for all tests.
var headstart = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "headstart-test-")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "headstart")
	out, err := exec.Command("go", "build", "-o", path, "github.com/headstart-serving/headstart/cmd/headstart").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

// config measures a small model, with fake peers.
func config(t *testing.T) Config {
	t.Helper()
	self, err := headstart()
	if err != nil {
		t.Fatal(err)
	}
	programs, models := t.TempDir(), t.TempDir()
	test, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hf", "rclone"} {
		if err := os.Symlink(test, filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(models, "acme", "small")
	weights := make([]byte, 5<<20+3)
	rand.NewChaCha8([32]byte{}).Read(weights)
	header := fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%[1]d]}}`, len(weights))
	file := append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header...)
	for name, data := range map[string][]byte{
		"config.json": []byte(`{"model_type":"tiny"}`), "model.safetensors": append(file, weights...),
		"left_out.bin": []byte("stage leaves it out"), ".gitattributes": []byte("*.safetensors filter=lfs\n"),
	} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	find, err := hub.NewDir(models)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := find.Find(t.Context(), "acme/small")
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Self: self, Repo: repo, Hub: []string{"--dir", models}, Scenarios: Names, Rounds: 1,
		Far: link.Shape{RoundTrip: 10 * time.Millisecond, Stream: 50e6},
		HF:  filepath.Join(programs, "hf"), Rclone: filepath.Join(programs, "rclone"),
		BucketDir: t.TempDir(), Scratch: t.TempDir(), Environ: os.Environ(), Say: func(line string) { t.Log(line) },
	}
}

// fakeHF downloads the files that it is told, as hf does.
func fakeHF() error {
	args := os.Args[1:]
	dir := args[slices.Index(args, "--local-dir")+1]
	files := args[2:slices.Index(args, "--revision")]
	for _, f := range files {
		res, err := http.Get(os.Getenv("HF_ENDPOINT") + "/" + args[1] + "/resolve/main/" + f)
		if err != nil {
			return err
		}
		out := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		w, err := os.Create(out)
		if err != nil {
			return err
		}
		if _, err := w.ReadFrom(res.Body); err != nil {
			return err
		}
		res.Body.Close()
		w.Close()
	}
	return os.WriteFile(filepath.Join(os.Getenv("HOME"), "cache"), make([]byte, 1<<20), 0o644)
}

// fakeRclone uploads what it finds. RCLONE_FAULT makes it do that badly.
func fakeRclone() error {
	dir, service := os.Args[2], os.Args[slices.Index(os.Args, "--gcs-endpoint")+1]
	fault := os.Getenv("RCLONE_FAULT")
	if fault == "fail" {
		return errors.New("first line\nrclone has failed")
	}
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".safetensors") {
			switch fault {
			case "garble":
				data[len(data)/2]++
			case "shorten":
				data = data[:len(data)-1]
			case "lose":
				return nil
			}
		}
		name, _ := filepath.Rel(dir, path)
		to := strings.Replace(service, "/storage/v1/", "/upload/storage/v1/", 1) + "b/models/o?uploadType=media&name=" + url.QueryEscape("peer/"+name)
		res, err := http.Post(to, "", strings.NewReader(string(data)))
		if err != nil {
			return err
		}
		res.Body.Close()
		return nil
	})
}

// TestScenarios runs all of them on a small model.
func TestScenarios(t *testing.T) {
	cfg := config(t)
	cfg.Rounds = 2
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Scenarios) != len(Names) || r.Files != 2 || r.Bytes < 5<<20 || r.Model != "acme/small" {
		t.Errorf("%+v", r)
	}
	for i, s := range r.Scenarios {
		if s.Name != Names[i] || len(s.Goals) == 0 {
			t.Errorf("%+v", s)
		}
		want := []string{stageName, bareName, hfName}
		switch s.Name {
		case "narrow":
			want = want[:2]
		case "discard":
			want = want[:1]
		}
		for j, w := range s.Ways {
			if w.Name != want[j] || len(w.Runs) != 2 {
				t.Errorf("%s: way %d is %s with %d runs", s.Name, j, w.Name, len(w.Runs))
			}
			if w.Rate.Min <= 0 || w.CPU.Min <= 0 || w.Memory.Min <= 0 {
				t.Errorf("%s: %s: %+v", s.Name, w.Name, w)
			}
			disk := w.Disk.Min >= float64(r.Bytes)+1<<20
			if (w.Name == hfName) != disk {
				t.Errorf("%s: %s had %.0f to %.0f bytes on disk", s.Name, w.Name, w.Disk.Min, w.Disk.Max)
			}
		}
		if len(s.Ways) != len(want) {
			t.Errorf("%s: %d ways, want %v", s.Name, len(s.Ways), want)
		}
	}
	// 5 MB in one stream of 50 MB/s, down and up.
	if hf := r.scenario("far").way(hfName); hf.Rate.Max > 26e6 {
		t.Errorf("a stream is not limited: %.0f bytes a second", hf.Rate.Max)
	}
	if total := r.scenario("narrow").Link.Total; total != int64(r.scenario("near").way(bareName).Rate.Median)/2 {
		t.Errorf("the narrow link has %d bytes a second", total)
	}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &out)
	nothingLeft(t, cfg)
}

// nothingLeft fails the test for each file and process that is left of a run.
func nothingLeft(t *testing.T, cfg Config) {
	t.Helper()
	for _, dir := range []string{cfg.BucketDir, cfg.Scratch} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(line), cfg.Self+"\x00") {
			t.Errorf("left: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}

// TestWrongBytes: a way that does not bring the Hub's bytes is an error, not a rate.
func TestWrongBytes(t *testing.T) {
	for fault, want := range map[string]string{
		"garble": "another way left", "shorten": "the Hub's file has", "lose": "the bucket holds 0 bytes of model.safetensors",
	} {
		cfg := config(t)
		cfg.Scenarios, cfg.Environ = []string{"near"}, append(cfg.Environ, "RCLONE_FAULT="+fault)
		if _, err := Run(t.Context(), cfg); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", fault, err)
		}
		nothingLeft(t, cfg)
	}
}

func TestFailed(t *testing.T) {
	cfg := config(t)
	cfg.Scenarios, cfg.Environ = []string{"near"}, append(cfg.Environ, "RCLONE_FAULT=fail")
	_, err := Run(t.Context(), cfg)
	var failed *child.Error
	if !errors.As(err, &failed) || failed.Code != 1 || failed.Said != "rclone has failed" {
		t.Errorf("%v", err)
	}
	cfg.Hub = []string{"--model", "gemma-9"}
	if _, err := Run(t.Context(), cfg); !errors.As(err, &failed) || failed.Code != 2 {
		t.Errorf("%v", err)
	}
	nothingLeft(t, cfg)
}

// TestInterrupted ends it at each way.
func TestInterrupted(t *testing.T) {
	for _, at := range []string{stageName, bareName, hfName} {
		cfg := config(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		interrupted := errors.New("interrupted")
		cfg.Say = func(line string) {
			if strings.HasSuffix(line, ": "+at) {
				cancel(interrupted)
			}
		}
		if _, err := Run(ctx, cfg); !errors.Is(err, interrupted) {
			t.Errorf("%s: %v", at, err)
		}
		nothingLeft(t, cfg)
	}
}

// TestWithoutPeers says what is not measured, and measures the rest.
func TestWithoutPeers(t *testing.T) {
	cfg := config(t)
	var said []string
	cfg.HF, cfg.Scenarios, cfg.Say = "", []string{"far"}, func(line string) { said = append(said, line) }
	r, err := Run(t.Context(), cfg)
	if err != nil || len(r.Scenarios[0].Ways) != 2 || len(r.Scenarios[0].Goals) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if !strings.Contains(strings.Join(said, "\n"), "hf download and rclone are not measured") {
		t.Errorf("it said %q", said)
	}
}
