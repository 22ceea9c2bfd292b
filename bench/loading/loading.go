// Package loading measures what a node is worth: how fast a model gets from the embedded bucket to where it
// can be read, beside the least that a checked load has to do ([limit]) and beside the tools that people
// use: curl, rclone, gcsfuse, transfermanager, and Run:ai's model streamer.
//
// There are four sets. Cold is the way from the bucket to readable bytes. Warm is what the second pod on a
// node pays. Links is the same with a network between, scaled down so that 100 Gbit/s are a sixth of what this
// machine can receive: how much of the link each tool uses, and how much later than ideal a reader is ready that
// reads as vLLM does ([replay]), with O_DIRECT or by Run:ai's streamer. Servers is a real vLLM on the CPU ([vllm]),
// from the moment its load begins until it has answered with a token, over networks that take so many seconds for
// the model.
//
// All of them read the same objects from one server. Each run begins with an empty folder on a tmpfs of
// huge pages whose memory has been touched, and the ways take turns, another one first in each round. After
// the clock has stopped every byte that a way delivered is compared with the manifest, whether the way
// looked at it or not. Memory is what the processes of a way hold beside files of the tmpfs.
//
// Nothing is left behind, however it ends.
package loading

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/bench/place"
	"github.com/headstart-serving/headstart/bench/score"
	"github.com/headstart-serving/headstart/bench/server"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub"
)

// The sets, in the order in which they run.
const (
	Cold  = "cold"
	Warm  = "warm"
	Links = "links"
	Serve = "servers"
)

// Names are the names of all sets.
var Names = []string{Cold, Warm, Links, Serve}

// Config says what to measure.
type Config struct {
	Self      string        // the headstart binary
	Repo      hub.Repo      // what is loaded
	Hub       []string      // flags of `headstart hub`, for it to serve Repo
	Sets      []string      // see [Names]
	Rounds    int           // how often each way runs
	Part      int64         // bytes that a request is for: chunks of the model, and parts of the peers that can be told; a power of two
	Gbits     []int         // networks of the set Links, in Gbit/s, where 100 are a sixth of what this machine receives
	RoundTrip time.Duration // of those, and of the set Serve's
	Stream    float64       // Gbit/s of one of their connections
	HeadStart time.Duration // how long a reader does not read weights, in the set Links
	Peers     Peers

	// The set Serve's.
	VLLM       string   // the environment that bench/vllm/install.sh made; what it keeps is in VLLM-cache beside it
	Seconds    []int    // networks, by how long the transfer of the model alone takes
	ServerWays []string // some of [ServerWays]
	Keep       string   // file of the runs so far: they count, and each one is added when it has ended; "" for none

	BucketDir string // where the bucket's folder is made: a tmpfs
	Scratch   string // where homes and mounts are made
	Environ   []string
	Say       func(string)
}

// Peers are the programs of others; "" leaves one out.
type Peers struct {
	Curl, Rclone, GCSFuse, Manager string
	Python                         string // one that has runai-model-streamer[gcs]
}

// bench is one run of it all.
type bench struct {
	Config
	manifest *manifest.Manifest
	paths    []string   // of the model's files
	tensors  tensors    // of those
	memory   *place.Dir // holds the bucket
	disk     *place.Dir // holds homes and mounts
	medium   string     // a tmpfs with huge pages
	bucket   *server.Server
	url      string // of the bucket, with nothing between
	others   []way
	walks    map[string]float64 // what ranks take from memory, in seconds, by their kind and number
	result   Result
}

const (
	prefix     = "headstart-bench-"
	bucketName = "models"
	plain      = "plain" // prefix of the objects that were uploaded in one piece and have an MD5
	slack      = 1 << 30 // bytes beside the model's: records, state, memory of processes
	serverRoom = 4 << 30 // bytes of a vLLM beside its weights, which it may have twice for a while
)

// Run measures. The result is filled as far as it came, also when there is an error.
func Run(ctx context.Context, cfg Config) (_ Result, err error) {
	b := &bench{Config: cfg, walks: map[string]float64{}}
	if b.memory, err = place.New(cfg.BucketDir, prefix); err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, b.memory.Remove()) }()
	if b.disk, err = place.New(cfg.Scratch, prefix); err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, b.disk.Remove()) }()
	if err = b.run(ctx); err != nil && ctx.Err() != nil { // whatever failed, failed because of that
		err = context.Cause(ctx)
	}
	return b.result, err
}

func (b *bench) run(ctx context.Context) error {
	b.result = Result{Machine: score.Machine(), Load: load(), Part: b.Part}
	if err := b.mountMedium(); err != nil {
		return err
	}
	if err := b.fill(ctx); err != nil {
		return err
	}
	defer b.bucket.End()
	if slices.Contains(b.Sets, Cold) || slices.Contains(b.Sets, Links) {
		b.others = b.peers()
	}
	for _, set := range []struct {
		name string
		run  func(context.Context) error
	}{{Cold, b.cold}, {Warm, b.warm}, {Links, b.links}, {Serve, b.servers}} {
		if !slices.Contains(b.Sets, set.name) {
			continue
		}
		if err := set.run(ctx); err != nil {
			return fmt.Errorf("set %s: %w", set.name, err)
		}
	}
	b.result.LoadEnd = load()
	return nil
}

// mountMedium mounts what the ways write to, and fails before the first byte where there is no room.
func (b *bench) mountMedium() error {
	var size int64
	for _, f := range b.Repo.Files() {
		size += f.Size
	}
	medium := 2*size*9/8 + slack // what is loaded and a second copy, as touch takes them
	need := medium + size        // and the bucket's
	if b.Peers.Rclone != "" {
		need += size
	}
	if slices.Contains(b.Sets, Serve) {
		need += 2*size + serverRoom
	}
	if !memory.Fits(need) {
		return &RoomError{Free: max(0, memory.Free()), Want: need}
	}
	b.medium = b.disk.Path("medium")
	if err := os.Mkdir(b.medium, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("size=%d,mode=0700", medium)
	err := unix.Mount(prefix+"medium", b.medium, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options+",huge=always")
	b.result.Medium = "tmpfs with huge pages"
	if errors.Is(err, unix.EINVAL) { // a kernel without huge pages
		err = unix.Mount(prefix+"medium", b.medium, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
		b.result.Medium = "tmpfs"
	}
	if err != nil {
		return fmt.Errorf("mounting a tmpfs (a node's mounts need root, and so does measuring them): %w", err)
	}
	return nil
}

// RoomError says that there is too little memory.
type RoomError struct{ Free, Want int64 } // bytes

func (e *RoomError) Error() string {
	return fmt.Sprintf("memory has, with what others need of it, %s free and the measurement needs %s: take a smaller --model", score.Bytes(e.Free), score.Bytes(e.Want))
}

func (e *RoomError) Unwrap() error { return unix.ENOSPC }

// environ is what the processes of a run see: a home of their own, and the bucket at url.
func (b *bench) environ(home, url string) []string {
	return child.Environ(b.Environ, map[string]string{
		"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home,
		"STORAGE_EMULATOR_HOST": url, "STORAGE_EMULATOR_HOST_GRPC": url, "HEADSTART_BUCKET": "gs://" + bucketName,
		"NO_PROXY": "127.0.0.1,127.0.0.2", "no_proxy": "127.0.0.1,127.0.0.2",
	})
}

func (b *bench) say(format string, args ...any) { b.Say(fmt.Sprintf(format, args...)) }

// load is the machine's load average, the first three words of /proc/loadavg.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	var one, five, fifteen string
	if _, err := fmt.Sscan(string(text), &one, &five, &fifteen); err != nil {
		return ""
	}
	return one + " " + five + " " + fifteen
}

// folder makes an empty folder of a run.
func folder(elem ...string) (string, error) {
	dir := filepath.Join(elem...)
	return dir, os.Mkdir(dir, 0o700)
}
