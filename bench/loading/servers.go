package loading

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/vllm"
	"github.com/headstart-serving/headstart/manifest"
)

// serving is how a real vLLM gets its model. What begin returns is what vLLM is told to serve.
type serving struct {
	start
	word  string                  // on the command line
	flags []string                // vLLM's
	env   func(*attempt) []string // what its environment has besides; may be nil
}

// ServerWays are the words for how a server gets its model. The first of them is the ideal.
var ServerWays = []string{"plain", "node", "node-runai", "fetch", "gcsfuse", "runai"}

const (
	plainServer     = "a plain copy, nothing to load"
	nodeRunaiServer = startName + ", Run:ai's streamer"
	runaiServer     = "Run:ai's streamer, from the bucket"
	runaiFormat     = "--load-format=runai_streamer"
	typicalGbit     = 16 // of the network whose streams are to it as those of the set servers are to theirs
	firstToken      = "first_token"
	weightsWanted   = "weights_wanted"
	weightsLoaded   = "weights_loaded"
	inspected       = "modelinfos" // in vLLM's cache, once a server has started
)

// servings are the ways that are wanted and can be, the ideal first.
func (b *bench) servings() []serving {
	all := []serving{
		{start: plainStart(), word: "plain"}, {start: nodeStart(), word: "node"}, nodeRunaiServing(), {start: fetchStart(), word: "fetch"},
		{start: gcsfuseStart(), word: "gcsfuse"}, runaiServing(),
	}
	return slices.DeleteFunc(all, func(s serving) bool {
		if !slices.Contains(b.ServerWays, s.word) {
			return true
		}
		missing := s.word == "gcsfuse" && b.Peers.GCSFuse == ""
		if missing && !slices.Contains(b.result.LeftOut, "gcsfuse") {
			b.leaveOut("gcsfuse")
		}
		return missing
	})
}

func nodeRunaiServing() serving {
	s := serving{word: "node-runai", start: nodeStart(), flags: []string{runaiFormat}}
	s.name = nodeRunaiServer
	return s
}

// runaiServing reads from the bucket and needs nothing else: what vLLM pulls beside the weights, it pulls anew.
func runaiServing() serving {
	return serving{
		word: "runai", flags: []string{runaiFormat},
		start: start{
			name:  runaiServer,
			ready: func(context.Context, *attempt) error { return nil },
			begin: func(_ context.Context, a *attempt) (string, error) {
				return "gs://" + bucketName + "/" + strings.TrimSuffix(a.model().Object(""), "/"), nil
			},
		},
		env: func(a *attempt) []string {
			return []string{
				"CLOUD_STORAGE_EMULATOR_ENDPOINT=" + a.url, "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS=true",
				"VLLM_ASSETS_CACHE=" + filepath.Join(a.home, "assets"),
			}
		},
	}
}

// servers starts a real vLLM in each way, in each round: on a plain copy, and over networks that take so
// long for the model.
func (b *bench) servers(ctx context.Context) error {
	s := &Servers{}
	if b.Keep != "" {
		kept, err := b.kept()
		if err != nil {
			return err
		}
		s = kept
	}
	b.result.Servers = s
	defer s.sum()
	if err := b.inspect(ctx); err != nil {
		return err
	}
	ways := b.servings()
	plain := slices.Contains(b.ServerWays, ServerWays[0])
	if plain {
		ways = ways[1:]
	}
	for round := range b.Rounds {
		if plain {
			if err := b.once(ctx, serving{start: plainStart()}, &s.Plain, round, b.url); err != nil {
				return err
			}
		}
		for _, seconds := range b.Seconds {
			if len(ways) == 0 {
				break
			}
			if err := b.serveOver(ctx, ways, s, seconds, round); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) serveOver(ctx context.Context, ways []serving, s *Servers, seconds, round int) error {
	total := b.manifest.Size() / int64(seconds)
	l, err := s.over(float64(seconds), link.Shape{RoundTrip: b.RoundTrip, Stream: int64(float64(total) * b.Stream / typicalGbit), Total: total})
	if err != nil {
		return err
	}
	return b.across(ctx, l.Link, func(at string) error {
		for i := range ways {
			w := ways[(round+i)%len(ways)]
			b.say("%s, a transfer of %d s, round %d of %d: %s", Serve, seconds, round+1, b.Rounds, w.name)
			if err := b.once(ctx, w, l.start(w.name), round, at); err != nil {
				return err
			}
		}
		return nil
	})
}

// once runs a start of this round, unless it has been run already, and keeps what came of it.
func (b *bench) once(ctx context.Context, w serving, into *ServerStart, round int, at string) error {
	into.Name = w.name
	if len(into.Runs) > round {
		return nil
	}
	run, err := b.serve(ctx, w, at)
	if err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	into.Runs = append(into.Runs, run)
	if err := b.result.Servers.sameTokens(); err != nil {
		return err
	}
	b.say("%s: %s: the first token after %.1f s, weights wanted after %.1f s and there after %.1f s", Serve, w.name, run.First, run.Wanted, run.Loaded)
	if b.Keep == "" {
		return nil
	}
	b.result.Servers.sum()
	return b.keep()
}

// serve starts a server once and returns what it took.
func (b *bench) serve(ctx context.Context, w serving, at string) (run ServerRun, err error) {
	if err := b.touch(ctx, 1); err != nil {
		return run, err
	}
	if err := warm(ctx, b.VLLM); err != nil {
		return run, fmt.Errorf("reading vLLM's files: %w", err)
	}
	a, err := b.attempt(at)
	defer func() { err = errors.Join(err, a.close()) }()
	if err != nil {
		return run, err
	}
	if err := w.ready(ctx, a); err != nil {
		return run, err
	}
	env := a.env
	if w.env != nil {
		env = append(env, w.env(a)...)
	}
	began := time.Now()
	model, err := w.begin(ctx, a)
	if err != nil {
		return run, err
	}
	before := time.Since(began).Seconds()
	r, err := vllm.Run(ctx, vllm.Config{
		Venv: b.VLLM, Dir: model, Cache: b.vllmCache(), Flags: w.flags, Steps: child.Lines(b.Say), Environ: env,
	})
	if err != nil {
		return run, errors.Join(err, ended(r.Log))
	}
	run = ServerRun{
		First: before + r.Steps[firstToken], Before: before, Wanted: before + r.Steps[weightsWanted], Loaded: before + r.Steps[weightsLoaded],
		Tokens: slices.Concat(r.Completion.Tokens, r.Chat.Tokens),
	}
	if r.Steps[firstToken] <= 0 || r.Steps[weightsWanted] <= 0 || r.Steps[weightsLoaded] <= 0 {
		return run, fmt.Errorf("vLLM's log does not say when it wanted its weights and had them: %v", r.Steps)
	}
	if w.done != nil {
		err = w.done(ctx)
	}
	return run, err
}

// ended is the end of a server's log as an error; nil when there is none.
func ended(log []string) error {
	if len(log) == 0 {
		return nil
	}
	return errors.New("vLLM's log ends with\n  " + strings.Join(log, "\n  "))
}

func (b *bench) vllmCache() string { return b.VLLM + "-cache" }

// inspect starts a server that does not count where none was started before: it inspects the model's
// architecture, for half a minute, and keeps what it found.
func (b *bench) inspect(ctx context.Context) error {
	_, err := os.Stat(filepath.Join(b.vllmCache(), inspected))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b.say("%s: the first start with this cache does not count", Serve)
	_, err = b.serve(ctx, serving{start: plainStart()}, b.url)
	return err
}

// warm reads what vLLM is made of, so that each start finds it in memory.
func warm(ctx context.Context, venv string) error {
	return filepath.WalkDir(filepath.Join(venv, "lib"), func(path string, d fs.DirEntry, err error) error {
		if err = cmp.Or(err, ctx.Err()); err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// sameTokens fails when two servers have said different things.
func (s *Servers) sameTokens() error {
	var first *ServerRun
	var name string
	for _, x := range s.all() {
		for i := range x.Runs {
			r := &x.Runs[i]
			if first == nil {
				first, name = r, x.Name
			}
			if len(r.Tokens) == 0 || !slices.Equal(first.Tokens, r.Tokens) {
				return fmt.Errorf("%w tokens: %s said %v, and %s %v", manifest.ErrInvalid, name, first.Tokens, x.Name, r.Tokens)
			}
		}
	}
	return nil
}
