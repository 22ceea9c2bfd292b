package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/xorb"
	"github.com/headstart-serving/headstart/stager/stagertest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"headstart": main})
}

// TestScripts runs the commands as a person types them: one story a file in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":       exits,
			"hubfault":    hubFault,
			"bucketfault": bucketFault,
			"tmpfs":       tmpfs,
			"node":        node,
			"killworker":  killWorker,
			"until":       until,
			"damage":      damage,
			"damagemanifest": func(ts *testscript.TestScript, neg bool, args []string) {
				found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.json"))
				if err != nil || len(found) != 1 {
					ts.Fatalf("manifests in %s: %v, %v", args[0], found, err)
				}
				damage(ts, neg, []string{found[0], "0"})
			},
			"damagecommit": damageCommit,
			"tree":         tree,
			"weights":      weights,
			"nowrites":     noWrites,
			"fifo": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(unix.Mkfifo(ts.MkAbs(args[0]), 0o644))
			},
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Getuid() == 0, nil
		},
	})
}

// services is what a script talks to.
type services struct {
	hub    *hub.Server
	bucket *bucket.Server
}

type servicesKey struct{}

// setup starts a Hub with the repositories of a folder below acme/, each with a policy by its name,
// another that has large files in Xet alone at XET_ENDPOINT, and a bucket "models", for one script.
func setup(env *testscript.Env) error {
	root := filepath.Join(env.WorkDir, "hub")
	for _, name := range []string{"tiny", "gated", "disabled", "private"} {
		if err := writeModel(filepath.Join(root, "acme", name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "acme", "pickled"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "acme", "pickled", "pytorch_model.bin"), []byte("pickle"), 0o644); err != nil {
		return err
	}
	dir, err := hub.NewDir(root)
	if err != nil {
		return err
	}
	h := hub.New(hub.Config{
		Find:   dir,
		Tokens: map[string]string{"hf_good": "user", "hf_other": "other"},
		Policies: map[string]hub.Policy{
			"acme/gated":    {Gated: "manual", Granted: []string{"user"}},
			"acme/private":  {Private: true, Granted: []string{"user"}},
			"acme/disabled": {Disabled: true},
		},
	})
	b, err := bucket.New(filepath.Join(env.WorkDir, "buckets"))
	if err != nil {
		return err
	}
	if err := b.CreateBucket("models"); err != nil {
		return err
	}
	api, cdn, objects := httptest.NewServer(h.Handler()), httptest.NewServer(h.CDN()), httptest.NewServer(b)
	h.SetCDN(cdn.URL)
	xet := hub.New(hub.Config{Find: dir, Xet: &hub.Xet{Bridge: 1, Packing: xorb.Config{Schemes: []xorb.Scheme{xorb.Plain, xorb.LZ4, xorb.ByteGroups}}}})
	xetAPI, xetCDN, cas := httptest.NewServer(xet.Handler()), httptest.NewServer(xet.CDN()), httptest.NewServer(xet.CAS())
	xet.SetCDN(xetCDN.URL)
	xet.SetCAS(cas.URL)
	env.Setenv("XET_ENDPOINT", xetAPI.URL)
	env.Defer(func() {
		for _, s := range []*httptest.Server{api, cdn, objects, xetAPI, xetCDN, cas} {
			s.CloseClientConnections()
			s.Close()
		}
		b.Close()
	})
	env.Values[servicesKey{}] = services{h, b}
	env.Setenv("HF_ENDPOINT", api.URL)
	env.Setenv("STORAGE_EMULATOR_HOST", objects.URL)
	env.Setenv("STORAGE_EMULATOR_HOST_GRPC", objects.URL)
	env.Setenv("HEADSTART_BUCKET", "gs://models")
	env.Setenv("HF_HOME", filepath.Join(env.WorkDir, "hf"))
	return nil
}

// writeModel writes a model with a shard of a bit more than two chunks.
func writeModel(dir string) error { return writeShard(dir, 33<<20) }

// writeShard writes a model with a shard of size bytes of weights.
func writeShard(dir string, size int) error {
	header := fmt.Sprintf(`{"w":{"dtype":"BF16","shape":[%d],"data_offsets":[0,%d]}}`, size/2, size)
	shard := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	shard = append(shard, header...)
	weights := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(weights); err != nil {
		return err
	}
	files := map[string][]byte{
		"config.json":       []byte(`{"model_type":"gemma3_text"}`),
		"tokenizer.json":    []byte(`{"model":{}}`),
		"model.safetensors": append(shard, weights...),
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moving is a line of progress, which whatever takes longer than two seconds writes.
var moving = regexp.MustCompile(`^(staging|verifying|fetching|loading|removing) .* [kMGT]?B/s`)

// exits CODE COMMAND…: the command ends with the code. A failure says why in one line.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if got == 0 {
		return
	}
	said := 0
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if !strings.HasPrefix(line, "time=") && !moving.MatchString(line) { // neither the log nor progress
			said++
		}
	}
	if said != 1 {
		ts.Fatalf("%d lines for a person, want 1", said)
	}
	if strings.Contains(ts.ReadFile("stderr")+ts.ReadFile("stdout"), "hf_") {
		ts.Fatalf("the output has a token in it")
	}
}

// hubfault SUBSTRING FAULT: requests to the Hub whose path has the substring meet the fault, always.
func hubFault(ts *testscript.TestScript, _ bool, args []string) {
	faults := make([]string, 1000)
	for i := range faults {
		faults[i] = args[1]
	}
	of := func(r *http.Request) bool { return strings.Contains(r.URL.Path, args[0]) }
	if args[0] == "cdn" {
		of = hub.CDNFile(args[2])
	}
	ts.Value(servicesKey{}).(services).hub.Plan(of, faults...)
}

// bucketfault OPERATION INSTRUCTION: the bucket's next requests of that operation meet it.
func bucketFault(ts *testscript.TestScript, _ bool, args []string) {
	faults := make([]string, 1000)
	for i := range faults {
		faults[i] = args[1]
	}
	ts.Check(ts.Value(servicesKey{}).(services).bucket.Plan(args[0], faults...))
}

// weights FILE BYTES…: each is a safetensors file of so many bytes, with a tensor "w", or in a shard one
// that is named by the last digit of its number.
func weights(ts *testscript.TestScript, _ bool, args []string) {
	for ; len(args) > 1; args = args[2:] {
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		path := ts.MkAbs(args[0])
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
		data := stagertest.Safetensors(n)
		if number, _, sharded := strings.Cut(filepath.Base(path), "-of-"); sharded {
			data = bytes.Replace(data, []byte(`"w"`), []byte(`"`+number[len(number)-1:]+`"`), 1)
		}
		ts.Check(os.WriteFile(path, data, 0o644))
	}
}

// nowrites: the bucket was asked for nothing but to read since the last time.
func noWrites(ts *testscript.TestScript, _ bool, _ []string) {
	b := ts.Value(servicesKey{}).(services).bucket
	asked := 0
	for _, r := range b.Requests() {
		asked++
		switch strings.TrimPrefix(r.Op, "storage.") {
		case "objects.list", "objects.get":
		default:
			ts.Fatalf("the bucket was asked to %s %s", r.Op, r.Object)
		}
	}
	if asked == 0 {
		ts.Fatalf("the bucket was asked nothing")
	}
	b.ResetRequests()
}

// tmpfs DIR OPTIONS: mount one; with the options "ro" make the one that is there read-only, and with
// "ramfs" mount that, which cannot allocate.
func tmpfs(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	if args[1] == "ro" {
		ts.Check(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		return
	}
	ts.Check(os.MkdirAll(dir, 0o755))
	kind, options := "tmpfs", args[1]
	if options == "ramfs" {
		kind, options = "ramfs", ""
	}
	ts.Check(unix.Mount(kind, dir, kind, 0, options))
	ts.Defer(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// node CACHE SOCKET waits until the node that a script started in the background answers, and sees
// to it that its mounts are gone at the end.
func node(ts *testscript.TestScript, _ bool, args []string) {
	cache, socket := ts.MkAbs(args[0]), ts.MkAbs(args[1])
	ts.Defer(func() { unmountBelow(filepath.Dir(cache)) })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		<-tick.C
	}
	ts.Fatalf("no node answers at %s", socket)
}

// until REGEXP COMMAND...: again and again, until its output matches.
func until(ts *testscript.TestScript, _ bool, args []string) {
	for range 500 {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if regexp.MustCompile(args[0]).MatchString(ts.ReadFile("stdout")) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%q never came", args[0])
}

// killworker CACHE: kill -9 of the process that has the cache. When it returns that one has it no more.
func killWorker(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(filepath.Join(args[0], "lock"))))
	ts.Check(err)
	worker, err := unix.PidfdOpen(pid, 0)
	ts.Check(err)
	defer unix.Close(worker)
	ts.Check(unix.PidfdSendSignal(worker, unix.SIGKILL, nil, 0))
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(worker), Events: unix.POLLIN}}, -1)
	}
	ts.Check(err)
}

// unmountBelow detaches every mount below dir, the innermost first.
func unmountBelow(dir string) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	lines := bytes.Split(table, []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		if f := bytes.Fields(lines[i]); len(f) > 4 && bytes.HasPrefix(f[4], []byte(dir+"/")) {
			_ = unix.Unmount(string(f[4]), unix.MNT_DETACH)
		}
	}
}

// damage FILE OFFSET: another byte stands there.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	if found, err := filepath.Glob(path); err == nil && len(found) == 1 {
		path = found[0]
	}
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Chmod(path, 0o644))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, off)
	ts.Check(err)
}

// damagecommit DIR FILE OFFSET: damage the file of the commit that main names, of the model whose files are in DIR.
func damageCommit(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	owner, name := filepath.Dir(dir), filepath.Base(dir)
	commit := ts.ReadFile(filepath.Join(filepath.Dir(owner), ".headstart", filepath.Base(owner), name, "refs", "main"))
	damage(ts, neg, []string{filepath.Join(dir, commit, args[1]), args[2]})
}

// tree DIR FILE…: the directory holds exactly these files; a name that ends in "/…" stands for all
// that lies below it.
func tree(ts *testscript.TestScript, _ bool, args []string) {
	want := make(map[string]bool)
	for _, a := range args[1:] {
		want[a] = false
	}
	root := ts.MkAbs(args[0])
	ts.Check(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(rel, "/")
		switch {
		case has(want, rel):
			want[rel] = true
		case has(want, first+"/…"):
			want[first+"/…"] = true
		default:
			ts.Fatalf("%s: %s is there", args[0], rel)
		}
		return nil
	}))
	for name, there := range want {
		if !there {
			ts.Fatalf("%s: %s is not there", args[0], name)
		}
	}
}

func has(m map[string]bool, k string) bool { _, ok := m[k]; return ok }
