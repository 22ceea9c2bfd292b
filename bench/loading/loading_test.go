package loading

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub"
)

// TestMain is also curl and python, when it is called by their names.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	if run, ok := map[string]func() error{"curl": fakeCurl, "python": fakePython}[name]; ok {
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

// weightsSize is the size of the one tensor of the small model.
const weightsSize = 5<<20 + 3

// config measures a small model, with fake peers.
func config(t *testing.T, sets ...string) Config {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skip("a node's mounts need root and /dev/fuse")
	} else {
		f.Close()
	}
	self, err := headstart()
	if err != nil {
		t.Fatal(err)
	}
	test, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	for _, name := range []string{"curl", "python"} {
		if err := os.Symlink(test, filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	repo, models := smallRepo(t)
	return Config{
		Self: self, Repo: repo, Hub: []string{"--dir", models}, Sets: sets, Rounds: 1, Part: 1 << 20,
		Gbits: []int{50}, RoundTrip: time.Millisecond, Stream: 20, HeadStart: 50 * time.Millisecond,
		VLLM: fakeVenv(t, test), Seconds: []int{2, 1}, ServerWays: ServerWays,
		Peers:     Peers{Curl: filepath.Join(programs, "curl"), Python: filepath.Join(programs, "python")},
		BucketDir: t.TempDir(), Scratch: t.TempDir(), Environ: append(os.Environ(), "SERVER_STARTS=/dev/null"), Say: func(line string) { t.Log(line) },
	}
}

func smallRepo(t *testing.T) (_ hub.Repo, models string) {
	t.Helper()
	models = t.TempDir()
	data := make([]byte, weightsSize)
	rand.NewChaCha8([32]byte{}).Read(data)
	header := fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%[1]d]}}`, len(data))
	file := append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header...)
	for name, content := range map[string][]byte{
		"config.json": []byte(`{"model_type":"tiny"}`), "model.safetensors": append(file, data...), "sub/a b.json": []byte("{}"),
	} {
		path := filepath.Join(models, "acme", "small", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
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
	return repo, models
}

func body(from string) ([]byte, error) {
	res, err := http.Get(from)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: HTTP %s", from, res.Status)
	}
	return io.ReadAll(res.Body)
}

// fakeCurl downloads what its list names. PEER_FAULT makes it do that badly.
func fakeCurl() error {
	fault := os.Getenv("PEER_FAULT")
	if fault == "fail" {
		return errors.New("first line\ncurl has failed")
	}
	list, err := os.ReadFile(os.Args[len(os.Args)-1])
	if err != nil {
		return err
	}
	for _, m := range regexp.MustCompile(`url = "(.*)"\noutput = "(.*)"\n`).FindAllStringSubmatch(string(list), -1) {
		data, err := body(m[1])
		if err != nil {
			return err
		}
		if strings.HasSuffix(m[2], ".safetensors") {
			switch fault {
			case "garble":
				data[len(data)/2]++
			case "shorten":
				data = data[:len(data)-1]
			case "lose":
				continue
			}
		}
		if err := os.MkdirAll(filepath.Dir(m[2]), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(m[2], data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fakePython is Run:ai's streamer, for the one tensor of the small model.
func fakePython() error {
	if os.Args[1] == "-" {
		return fakeServer()
	}
	if os.Args[1] != "-c" || !strings.Contains(os.Args[2], "runai_model_streamer") || len(os.Args) < 5 {
		return fmt.Errorf("called with %q", os.Args[1:])
	}
	data, err := streamedFile(os.Args[3], os.Args[4:])
	if err != nil {
		return err
	}
	data = data[len(data)-weightsSize:]
	if os.Getenv("PEER_FAULT") == "stream" {
		data[7]++
	}
	return json.NewEncoder(os.Stdout).Encode(streamed{1, 0.5, weightsSize, crc32.Checksum(data, manifest.Castagnoli)})
}

// streamedFile is the one that is named, of the bucket, or by the FIFO.
func streamedFile(bucket string, files []string) ([]byte, error) {
	if files[0] != "--from" {
		return body(bucket + "/" + strings.TrimPrefix(files[0], "gs://"))
	}
	list, err := os.ReadFile(files[1])
	if err != nil {
		return nil, err
	}
	return os.ReadFile(strings.TrimSuffix(string(list), "\n"))
}

// TestSets runs all of them on a small model.
func TestSets(t *testing.T) {
	cfg := config(t, Names...)
	cfg.Rounds = 2
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Model != "acme/small" || r.Files != 3 || r.Bytes < weightsSize || r.Load == "" || len(r.LeftOut) != 3 {
		t.Errorf("%+v", r)
	}
	cold := []string{limitName, nodeName, fetchName, grpcName, streamName, curlName, runaiName}
	across := []string{limitName, nodeName, runaiName}
	for i, want := range [][]string{cold, across} {
		l := r.Loads[i]
		if len(l.Ways) != len(want) || len(l.Goals) == 0 {
			t.Fatalf("%s: %d ways, %d goals", l.Name, len(l.Ways), len(l.Goals))
		}
		for j, w := range l.Ways {
			if w.Name != want[j] || len(w.Runs) != 2 || w.compared() != "yes" || w.Rate.Min <= 0 || w.CPU.Min < 0 || w.Memory.Min <= 0 {
				t.Errorf("%s: %+v", l.Name, w)
			}
			if reader := w.Reader.Min > 0; reader != (w.Name == streamName) {
				t.Errorf("%s: %s: a reader took %+v", l.Name, w.Name, w.Reader)
			}
		}
		if starts := len(l.Starts); starts != 7 && i > 0 || starts != 0 && i == 0 {
			t.Errorf("%s: %d starts", l.Name, starts)
		}
		for _, s := range l.Starts {
			said := strings.Contains(s.Name, runai.name) // the time is one that the tool has said
			if len(s.Runs) != 2 || s.Ideal < 0.05 || s.Over.Min < -0.5 && !said {
				t.Errorf("%s: %+v", l.Name, s)
			}
		}
	}
	if s := r.Servers; s == nil || len(s.Plain.Runs) != 2 || len(s.Over) != 2 || s.Over[0].Transfer != 1 {
		t.Errorf("%+v", s)
	}
	for _, o := range r.Servers.Over {
		if len(o.Starts) != 4 || o.Link.Total != r.Bytes/int64(o.Transfer) || o.Link.Stream != o.Link.Total*20/16 || len(o.Goals) != 1 {
			t.Errorf("%+v", o)
		}
		for _, x := range o.Starts {
			if len(x.Runs) != 2 || (x.Name == fetchStart().name) != (x.Runs[0].Before > 0.5) {
				t.Errorf("%+v", x)
			}
		}
	}
	if w := r.Loads[0].way(runaiName); w.Rate.Median != weightsSize || w.CPU.Median*weightsSize < 0.49e9 {
		t.Errorf("what a tool says of its own time is not taken: %+v", w)
	}
	// No way is faster than its network, but for what the relay lets through at once.
	for _, l := range r.Loads[1:] {
		for _, w := range l.Ways[:2] {
			if w.Rate.Max > 1.3*float64(l.Link.Total) {
				t.Errorf("%s: %s: %.0f bytes a second of %d", l.Name, w.Name, w.Rate.Max, l.Link.Total)
			}
		}
	}
	if s := r.Second; s == nil || s.Rounds != 2*walks || s.Publish.Min <= 0 || s.Mount.Min <= 0 || len(s.Goals) != 2 {
		t.Errorf("%+v", s)
	}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &out)
	nothingLeft(t, cfg)
}

// nothingLeft fails the test for each file, mount and process that is left of a run.
func nothingLeft(t *testing.T, cfg Config) {
	t.Helper()
	for _, dir := range []string{cfg.BucketDir, cfg.Scratch} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
		if table, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(table), dir) {
			t.Errorf("left mounted below %s: %v", dir, err)
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

// TestWrongBytes: a way that does not bring the model's bytes is an error, not a rate.
func TestWrongBytes(t *testing.T) {
	var wrong *manifest.MismatchError
	for fault, is := range map[string]func(error) bool{
		"garble":  func(err error) bool { return errors.As(err, &wrong) && wrong.Path == "model.safetensors" },
		"shorten": func(err error) bool { return errors.As(err, &wrong) && wrong.Path == "model.safetensors" },
		"lose":    func(err error) bool { return errors.Is(err, os.ErrNotExist) },
		"stream": func(err error) bool {
			return errors.Is(err, manifest.ErrInvalid) && strings.Contains(err.Error(), runaiName)
		},
		"fail": func(err error) bool {
			var failed *child.Error
			return errors.As(err, &failed) && failed.Code == 1 && failed.Said == "curl has failed"
		},
	} {
		cfg := config(t, Cold)
		cfg.Environ = append(cfg.Environ, "PEER_FAULT="+fault)
		if _, err := Run(t.Context(), cfg); err == nil || !is(err) {
			t.Errorf("%s: %v", fault, err)
		}
		nothingLeft(t, cfg)
	}
}

// TestInterrupted ends it after each way, while the next one is made ready or runs. What was measured stays.
func TestInterrupted(t *testing.T) {
	for _, after := range []string{limitName, nodeName, fetchName, streamName, "published in", "all weights"} {
		cfg := config(t, Names...)
		ctx, cancel := context.WithCancelCause(t.Context())
		interrupted := errors.New("interrupted")
		cfg.Say = func(line string) {
			if strings.Contains(line, after) {
				time.AfterFunc(5*time.Millisecond, func() { cancel(interrupted) })
			}
		}
		r, err := Run(ctx, cfg)
		if !errors.Is(err, interrupted) {
			t.Errorf("%s: %v", after, err)
		}
		var out strings.Builder
		if err := r.Write(&out); err != nil || !strings.Contains(out.String(), limitName) || strings.Contains(out.String(), "NaN") {
			t.Errorf("%s: of what was measured it says\n%s", after, &out)
		}
		nothingLeft(t, cfg)
	}
}

// TestRoom: what does not fit fails before the first byte.
func TestRoom(t *testing.T) {
	cfg := config(t, Cold)
	cfg.Repo = huge{cfg.Repo}
	_, err := Run(t.Context(), cfg)
	var small *RoomError
	if !errors.As(err, &small) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "--model") {
		t.Errorf("%v", err)
	}
	nothingLeft(t, cfg)
}

type huge struct{ hub.Repo }

func (huge) Files() []hub.File { return []hub.File{{Path: "w.safetensors", Size: 1 << 50}} }
