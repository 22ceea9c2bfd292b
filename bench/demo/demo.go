// Package demo does the main job on one machine: an embedded Hub, an embedded bucket and a node in a
// temporary place; a model goes Hub → bucket → node → a process that reads it the way vLLM does, or
// vLLM itself, and every byte of it is compared with the Hub's sha256 at the end of that road.
//
// Hub and bucket are servers of this process on the loopback address. Everything else is a process
// of the same binary that a person could have started: stage, node, publish, wait, replay, fetch.
// Each command is told before it runs.
//
// Nothing is left behind, however it ends: every process is ended and waited for, whatever is mounted
// below the temporary folder is unmounted, and the folder goes last. After SIGKILL the processes end by
// themselves, and the next demo removes the folder and its mounts.
package demo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/bench/replay"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/gemma"
)

// The roads from the bucket to a reader.
const (
	Node  = "node"  // a daemon that shows the model while it loads; needs root and /dev/fuse
	Fetch = "fetch" // a directory, read when it is complete; needs nothing
)

// Config says what to show.
type Config struct {
	Self      string        // the headstart binary
	Model     string        // "gemma-3-270m"
	Seed      uint64        // of the synthetic weights
	Road      string        // Node, Fetch, or "" for the best that this process may use
	Cache     string        // directory for the node's cache; "" for a tmpfs where possible
	HeadStart time.Duration // how long the first reader does not read weights, like vLLM while it imports
	Compare   bool          // also download the same bytes with curl
	VLLM      *VLLM         // a real vLLM reads instead; nil for replay
	Temp      string        // where the temporary folder is made
	Environ   []string      // of the processes
	Say       func(string)  // is told what happens, a line at a time
}

// VLLM is where a real one is.
type VLLM struct {
	Venv  string // the directory that bench/vllm/install.sh made
	Cache string // kept between runs; "" for a temporary one
}

// demo is one run.
type demo struct {
	cfg    Config
	repo   hub.Repo
	files  []hub.File // of the repository, that are staged
	place  *folder
	env    []string // of the processes
	began  time.Time
	cold   replay.Result // of the first reader
	held   struct{ load, copy memory.Reserve }
	result Result
}

// Run runs it. The result is filled as far as it came, also when there is an error.
func Run(ctx context.Context, cfg Config) (_ Result, err error) {
	d := &demo{cfg: cfg, began: time.Now()}
	if d.repo, err = Repo(cfg.Model, cfg.Seed); err != nil {
		return Result{}, err
	}
	if d.files, err = chosen(d.repo.Files()); err != nil {
		return Result{}, err
	}
	if d.place, err = newFolder(cfg.Temp); err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, d.place.remove()) }()
	if err := d.run(ctx); err != nil {
		if ctx.Err() != nil { // whatever failed, failed because of that
			err = context.Cause(ctx)
		}
		return d.result, err
	}
	return d.result, nil
}

// Repo makes the synthetic repository of a name such as "gemma-3-1b", with or without "google/" and "-it".
func Repo(name string, seed uint64) (hub.Repo, error) {
	size := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "google/"), "gemma-3-"), "-it")
	return gemma.New(size, seed)
}

// chosen picks the files that stage stages.
func chosen(files []hub.File) ([]hub.File, error) {
	remote := make([]stager.RemoteFile, len(files))
	for i, f := range files {
		remote[i] = stager.RemoteFile{Path: f.Path, Size: f.Size}
	}
	choice, err := stager.Choose(remote, stager.Selection{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(files), func(f hub.File) bool {
		return !slices.ContainsFunc(choice.Files, func(c stager.RemoteFile) bool { return c.Path == f.Path })
	}), nil
}

func (d *demo) run(ctx context.Context) error {
	d.result.describe(d.repo, d.files, d.cfg)
	road, why := d.road()
	d.result.Road = road
	if err := d.room(road); err != nil {
		return err
	}
	if err := d.medium(road); err != nil {
		return err
	}
	d.say("a synthetic %s, %s, in %s", d.repo.Name(), bytesOf(d.result.Bytes), d.place.Path())
	if why != "" {
		d.say("the road is a directory that fetch fills, for the node's needs root and /dev/fuse: %s", why)
	}
	services, err := d.serve()
	if err != nil {
		return err
	}
	defer services.close()
	if err := d.sums(ctx); err != nil {
		return err
	}
	if err := d.stage(ctx); err != nil {
		return err
	}
	if road == Node {
		err = d.byNode(ctx)
	} else {
		err = d.byFetch(ctx)
	}
	if err != nil {
		return err
	}
	if d.cfg.VLLM != nil {
		if err := d.servePlain(ctx); err != nil {
			return err
		}
	}
	if d.cfg.Compare {
		if err := d.compare(ctx, services.bucketURL); err != nil {
			return err
		}
	}
	d.result.Total = d.now()
	return nil
}

// stage is the first stretch: Hub → bucket.
func (d *demo) stage(ctx context.Context) error {
	begin := d.now()
	var r struct {
		Bytes   int64   `json:"bytes"`
		Seconds float64 `json:"seconds"`
	}
	if err := d.command(ctx, &r, "stage", d.repo.Name(), "--json"); err != nil {
		return err
	}
	if r.Bytes != d.result.Bytes {
		return fmt.Errorf("staged %d bytes, the Hub's files have %d", r.Bytes, d.result.Bytes)
	}
	d.result.Stage = round(d.now() - begin)
	d.result.StageRate = rate(r.Bytes, d.result.Stage)
	d.span("stage", begin, d.now())
	return nil
}

// touch touches what the load will need, and the comparison.
func (d *demo) touch(ctx context.Context) (err error) {
	if d.place.tmpfs == "" {
		return nil
	}
	d.say("touching the memory of the cache, so that the timeline shows headstart and not a hypervisor")
	begin := d.now()
	if d.held.load, err = memory.Touch(ctx, d.place.tmpfs, d.result.Bytes); err != nil {
		return err
	}
	if d.cfg.Compare {
		if d.held.copy, err = memory.Touch(ctx, d.place.tmpfs, d.result.Bytes); err != nil {
			return err
		}
	}
	d.span("touch memory", begin, d.now())
	return nil
}

// sums writes what the Hub says of its files to where the readers find it.
func (d *demo) sums(ctx context.Context) error {
	sums, err := hubSums(ctx, d.repo, d.files)
	if err != nil {
		return err
	}
	return d.place.write(sumsFile, func(f writer) error { return replay.WriteSums(f, sums) })
}

func (d *demo) say(format string, args ...any) { d.cfg.Say(fmt.Sprintf(format, args...)) }

// now returns the seconds since the demo began.
func (d *demo) now() float64 { return time.Since(d.began).Seconds() }

// since returns t in seconds since the demo began.
func (d *demo) since(t time.Time) float64 { return t.Sub(d.began).Seconds() }

func (d *demo) span(name string, start, end float64) {
	d.result.Timeline = append(d.result.Timeline, Span{Name: name, Start: round(start), End: round(end)})
}

func round(s float64) float64 { return math.Round(s*1e3) / 1e3 }

func rate(n int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return math.Round(float64(n) / seconds)
}
