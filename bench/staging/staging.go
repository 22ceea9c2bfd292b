// Package staging measures what `headstart stage` is worth: how fast it brings a model from the embedded
// Hub to the embedded bucket, and what that costs in processor time, memory and disk, beside what people
// do without it (`hf download`, then `rclone copy`) and beside a bare loop that checks nothing.
//
// Each run is a process of its own, or two, with servers that are processes of their own, an empty
// bucket and an empty home. The ways take turns, so that what the machine does beside hits all alike.
// What a way takes is read from the kernel: processor time from the rusage of the process and the
// children it waited for; memory as the sum of the peaks (VmHWM) of the processes that live at one time;
// disk as what lies in the home that it was given. After each run the bucket is asked what it holds:
// every file in full, with the crc32c that every other way left.
//
// Nothing is left behind, however it ends.
package staging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/place"
	"github.com/headstart-serving/headstart/bench/score"
	"github.com/headstart-serving/headstart/bench/server"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hub"
)

// Config says what to measure.
type Config struct {
	Self      string     // the headstart binary
	Repo      hub.Repo   // what is staged
	Hub       []string   // flags of `headstart hub`, for it to serve Repo
	Scenarios []string   // names of scenarios, see [Names]
	Rounds    int        // how often each way runs in each scenario
	Far       link.Shape // of the scenario that is far away
	HF        string     // the hf program, with the folder it is in; "" for none
	Rclone    string     // the rclone program; "" for none
	BucketDir string     // where the bucket's folder is made: a tmpfs, for no disk here is as fast as a bucket
	Scratch   string     // where the homes of the processes are made
	Environ   []string   // of the processes
	Say       func(string)
}

// bench is one run of it all.
type bench struct {
	Config
	model  manifest.Model
	files  []hub.File // that stage stages
	bytes  int64      // of those
	memory *place.Dir // holds the bucket
	disk   *place.Dir // holds the homes
	hub    *server.Server
	sums   map[string]uint32 // crc32c of each file, by path: what the first way left
	result Result
}

// Run measures. The result is filled as far as it came, also when there is an error.
func Run(ctx context.Context, cfg Config) (_ Result, err error) {
	b := &bench{Config: cfg, model: manifest.Model{Repo: cfg.Repo.Name(), Commit: cfg.Repo.Commit()}}
	if b.files, err = chosen(cfg.Repo.Files()); err != nil {
		return Result{}, err
	}
	for _, f := range b.files {
		b.bytes += f.Size
	}
	b.result = Result{Model: b.model.Repo, Commit: b.model.Commit, Files: len(b.files), Bytes: b.bytes, Machine: score.Machine()}
	if b.memory, err = place.New(cfg.BucketDir, prefix); err != nil {
		return b.result, err
	}
	defer func() { err = errors.Join(err, b.memory.Remove()) }()
	if b.disk, err = place.New(cfg.Scratch, prefix); err != nil {
		return b.result, err
	}
	defer func() { err = errors.Join(err, b.disk.Remove()) }()
	if err = b.run(ctx); err != nil && ctx.Err() != nil { // whatever failed, failed because of that
		err = context.Cause(ctx)
	}
	return b.result, err
}

const prefix = "headstart-bench-"

// chosen picks the files that stage stages, for every way to bring the same.
func chosen(files []hub.File) ([]hub.File, error) {
	remote := make([]stager.RemoteFile, len(files))
	for i, f := range files {
		remote[i] = stager.RemoteFile{Path: f.Path, Size: f.Size}
	}
	chosen, err := stager.Choose(remote, stager.Selection{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(files), func(f hub.File) bool {
		return !slices.ContainsFunc(chosen.Files, func(c stager.RemoteFile) bool { return c.Path == f.Path })
	}), nil
}

func (b *bench) run(ctx context.Context) (err error) {
	list, err := b.scenarios()
	if err != nil {
		return err
	}
	if err := b.room(list); err != nil {
		return err
	}
	b.hub, err = server.Start(ctx, b.Self, b.Environ, 2, slices.Concat([]string{"hub", "--listen", near + ":0"}, b.Hub)...)
	if err != nil {
		return err
	}
	defer b.hub.End()
	for _, s := range list {
		if err := b.scenario(ctx, s); err != nil {
			return fmt.Errorf("scenario %s: %w", s.name, err)
		}
	}
	return nil
}

// scenario runs each of its ways in each round, another one first each time.
func (b *bench) scenario(ctx context.Context, s scenario) error {
	shape := s.shape(b)
	b.result.Scenarios = append(b.result.Scenarios, Scenario{Name: s.name, Title: s.title, Link: shape, Discard: s.discard, Rounds: s.rounds})
	r := &b.result.Scenarios[len(b.result.Scenarios)-1]
	for _, w := range s.ways {
		r.Ways = append(r.Ways, Way{Name: w.name, Checks: w.checks})
	}
	for round := range s.rounds {
		for i := range s.ways {
			at := (round + i) % len(s.ways)
			w := s.ways[at]
			b.say("%s, round %d of %d: %s", s.name, round+1, s.rounds, w.name)
			run, err := b.measure(ctx, w, shape, s.discard)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			b.say("%s, round %d of %d: %s: %s", s.name, round+1, s.rounds, w.name, run.line())
			r.Ways[at].Runs = append(r.Ways[at].Runs, run)
		}
	}
	for i := range r.Ways {
		r.Ways[i].sum()
	}
	r.Goals = s.goals(r)
	return nil
}

func (b *bench) say(format string, args ...any) { b.Say(fmt.Sprintf(format, args...)) }

// environ is what the processes of a run see: a home of their own, and the servers.
func (b *bench) environ(home, hubURL, bucketURL string) []string {
	return child.Environ(b.Environ, map[string]string{
		"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home,
		"HF_HOME": home, "HF_ENDPOINT": hubURL, "STORAGE_EMULATOR_HOST": bucketURL, "HEADSTART_BUCKET": "gs://" + bucketName,
		"NO_PROXY": near + "," + far, "no_proxy": near + "," + far,
		// The Hub's client at its fastest, and without what has nothing to do with the bytes.
		"HF_XET_HIGH_PERFORMANCE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
	})
}

// tell is how often it is said how far a run is.
const tell = 10 * time.Second
