package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/vllm"
	"github.com/headstart-serving/headstart/manifest"
)

// serveStreamed starts vLLM on the model's mount, at the moment the load begins.
func (d *demo) serveStreamed(ctx context.Context, dir string) error {
	r, err := d.server(ctx, "vLLM", dir, "vllm.log")
	d.result.VLLM = &Served{Road: r}
	return err
}

// servePlain starts vLLM again, on a copy of the same files that nothing of ours stands before, and
// compares what the two said.
func (d *demo) servePlain(ctx context.Context) error {
	dir := d.place.Path("plain")
	begin := d.now()
	if err := d.command(ctx, nil, "fetch", d.repo.Name(), dir, "--json"); err != nil {
		return err
	}
	d.span("plain copy", begin, d.now())
	r, err := d.server(ctx, "vLLM, plain", dir, "vllm-plain.log")
	if err != nil {
		return err
	}
	v := d.result.VLLM
	v.Plain, v.Same = r, vllm.SameAnswers(v.Road, r)
	cold, plain := weights(v.Road), weights(r)
	d.result.Cold, d.result.ColdRate = round(cold), rate(d.result.Readers[0].Weights, cold)
	d.result.Stall = round(d.result.Stall + max(0, cold-plain))
	if !v.Same {
		return fmt.Errorf("%w tokens: vLLM on the mount answered %v and %v, on a plain copy %v and %v", manifest.ErrInvalid,
			v.Road.Completion.Tokens, v.Road.Chat.Tokens, r.Completion.Tokens, r.Chat.Tokens)
	}
	return nil
}

// weights returns how long a server read its weights.
func weights(r vllm.Result) float64 {
	for _, p := range r.Phases {
		if p.Name == "weights" {
			return p.End - p.Start
		}
	}
	return 0
}

func (d *demo) server(ctx context.Context, who, dir, log string) (vllm.Result, error) {
	cache := d.cfg.VLLM.Cache
	if cache == "" {
		cache = d.place.Path("vllm-cache")
	}
	d.say("vLLM starts on %s; on two cores that takes two minutes", dir)
	began := d.now()
	r, err := vllm.Run(ctx, vllm.Config{
		Venv: d.cfg.VLLM.Venv, Dir: dir, Cache: cache, Log: d.place.Path(log), Steps: child.Lines(d.cfg.Say), Environ: d.env,
	})
	for _, line := range r.Log { // its file goes with the demo
		d.say("%s: %s", strings.TrimSuffix(log, ".log"), line)
	}
	for _, p := range r.Phases {
		d.result.Timeline = append(d.result.Timeline, Span{
			Name: who + ": " + p.Name, Start: round(began + p.Start), End: round(began + p.End), Idle: strings.HasPrefix(p.Name, "imports"),
		})
	}
	return r, err
}
