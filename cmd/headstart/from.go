package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/dir"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/staged"
)

// openFrom opens what a model is staged from: the Hub, another bucket (a URL), a folder (a path). Call the
// function that it returns when done.
func openFrom(ctx context.Context, p process, from string) (stager.Source, func(), error) {
	switch {
	case from == "":
		return openHub(p)
	case strings.Contains(from, "://"):
		u, err := parseBucket(from)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--from: %w; a folder is given as a path", err)}
		}
		store, closeStore, err := openStore(ctx, p, u)
		if err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
		return staged.New(store), closeStore, nil
	}
	s := dir.New(from)
	s.Log = p.logger(slog.LevelInfo) // it reads everything before it shows progress, and says so
	return s, func() {}, nil
}

func openHub(p process) (stager.Source, func(), error) {
	c, err := hf.FromEnv(p.Getenv)
	if err != nil {
		return nil, nil, usageError{err}
	}
	c.Log = p.logger(slog.LevelWarn)
	s, err := hf.New(c)
	if err != nil {
		return nil, nil, usageError{err}
	}
	return s, func() { s.Close() }, nil
}
