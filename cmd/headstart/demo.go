package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/demo"
	"github.com/headstart-serving/headstart/bench/timeline"
	"github.com/headstart-serving/headstart/manifest"
)

func newDemoCommand(p process) *cobra.Command {
	cfg := demo.Config{Temp: os.TempDir(), Environ: os.Environ()}
	var venv string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "The main job on this machine: Hub, bucket, node and a reader, every byte verified",
		Long: `demo starts an embedded Hub with a synthetic Gemma, an embedded bucket and a node in a temporary
folder, stages the model and publishes it. At the moment the node begins to load, a reader starts that
reads the model the way vLLM does; a second one follows when everything is there. Both compare every
byte with the Hub's sha256. What took how long is drawn as bars.

The node needs root and /dev/fuse. Without them a directory is filled with fetch and read then.
With --vllm a real vLLM reads instead, and answers as it does on a plain copy of the files.
Nothing is left behind.`,
		Example: `  headstart demo
  headstart demo --model gemma-3-4b --head-start 15s --compare
  headstart demo --vllm .cache/vllm --json`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&cfg.Model, "model", "gemma-3-270m", "synthetic `NAME`: gemma-3-270m, -1b, -4b, -12b or -27b")
	cmd.Flags().Uint64Var(&cfg.Seed, "seed", 0, "what the synthetic weights are made from")
	cmd.Flags().StringVar(&cfg.Cache, "cache", "", "`DIR` that the node's cache lies in (default: a tmpfs with huge pages where root and memory allow it, else a temporary folder)")
	cmd.Flags().StringVar(&cfg.Road, "road", "", "node or fetch (default: node where root and /dev/fuse allow it)")
	cmd.Flags().DurationVar(&cfg.HeadStart, "head-start", time.Second, "time that the first reader imports and reads no weights; vLLM takes 15s to 20s")
	cmd.Flags().BoolVar(&cfg.Compare, "compare", false, "also download the same bytes with curl")
	cmd.Flags().StringVar(&venv, "vllm", "", "`DIR` where bench/vllm/install.sh put a vLLM: it reads instead, and answers")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := demo.Repo(cfg.Model, cfg.Seed); err != nil {
			return usageError{err}
		}
		if cfg.Road != "" && cfg.Road != demo.Node && cfg.Road != demo.Fetch {
			return usageError{fmt.Errorf("--road %s: want %s or %s", cfg.Road, demo.Node, demo.Fetch)}
		}
		if venv != "" {
			dir, err := vllmAt(venv)
			if err != nil {
				return err
			}
			cfg.VLLM = &demo.VLLM{Venv: dir, Cache: dir + "-cache"}
		}
		var err error
		if cfg.Self, err = os.Executable(); err != nil {
			return err
		}
		cfg.Say = sayer(p.Stderr)
		ctx, stop := untilCleaned(cmd.Context())
		defer stop()
		r, err := demo.Run(ctx, cfg)
		if err != nil {
			return classified(err)
		}
		if asJSON {
			return json.NewEncoder(p.Stdout).Encode(r)
		}
		return p.drawDemo(&r)
	}
	return cmd
}

// vllmAt returns the absolute path of the environment that bench/vllm/install.sh has made in dir.
func vllmAt(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(path, "bin", "vllm")); dir == "" || err != nil {
		return "", usageError{fmt.Errorf("no vLLM in %q: name in --vllm where bench/vllm/install.sh put one", dir)}
	}
	return path, nil
}

// untilCleaned makes sure that no signal ends the process before the demo has cleaned up: not a second
// Ctrl-C, not a terminal that closes, not a pipe that nobody reads.
func untilCleaned(ctx context.Context) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	pipe := make(chan os.Signal, 1) // with a listener, a write that fails is an error instead
	signal.Notify(pipe, syscall.SIGPIPE)
	return ctx, func() {
		stop()
		signal.Stop(pipe)
	}
}

// sayer returns what tells a line on w, with the time since it was made. It is safe for concurrent use.
func sayer(w io.Writer) func(string) {
	var mu sync.Mutex
	begin := time.Now()
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%6.2f  %s\n", time.Since(begin).Seconds(), line)
	}
}

func (p process) drawDemo(r *demo.Result) error {
	if err := timeline.Draw(p.Stdout, r.Rows(), p.drawing()); err != nil {
		return err
	}
	for _, line := range r.Lines() {
		if _, err := fmt.Fprintln(p.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// drawing says what stdout can show.
func (p process) drawing() timeline.Style {
	s := timeline.Style{Width: 100, ASCII: asciiOnly(p.Getenv)}
	f, ok := p.Stdout.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		s.Width = min(w, 140)
	}
	s.Colour = p.Getenv("NO_COLOR") == "" && p.Getenv("TERM") != "dumb"
	return s
}

// asciiOnly reports whether the locale is one without UTF-8. Where none is set, as in containers, it is not.
func asciiOnly(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(getenv(name)); v != "" {
			return !strings.Contains(v, "UTF-8") && !strings.Contains(v, "UTF8")
		}
	}
	return false
}

// classed is an error of a process, of the class that its exit code says.
type classed struct {
	error
	class error
}

func (e classed) Unwrap() []error { return []error{e.error, e.class} }

// classified gives a demo or a benchmark the exit code of the headstart command that failed in it.
func classified(err error) error {
	var c *child.Error
	if !errors.As(err, &c) || !strings.HasPrefix(c.Command, "headstart ") {
		return err
	}
	class, ok := map[int]error{
		exitAccess: fs.ErrPermission, exitNotFound: fs.ErrNotExist, exitMismatch: manifest.ErrInvalid,
		exitSpace: syscall.ENOSPC, exitConflict: syscall.EBUSY,
	}[c.Code]
	if !ok {
		return err
	}
	return classed{err, class}
}
