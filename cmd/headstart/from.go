package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/dir"
	"github.com/headstart-serving/headstart/stager/hf"
	"github.com/headstart-serving/headstart/stager/staged"
)

// openFrom opens what a model is staged from: the Hub, another bucket (a URL), a folder (a path). Call the
// function that it returns when done.
func openFrom(ctx context.Context, p process, from string, retrying func(stager.Retry)) (stager.Source, func(), error) {
	switch {
	case from == "":
		return openHub(p, retrying)
	case strings.Contains(from, "://"):
		u, err := parseBucket(from)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--from: %w; a folder is given as a path", err)}
		}
		store, closeStore, err := openStore(ctx, p, u, retrying)
		if err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
		return staged.New(store), closeStore, nil
	}
	s := dir.New(from)
	s.Log = p.logger(slog.LevelInfo) // it reads everything before it shows progress, and says so
	return s, func() {}, nil
}

// openHub opens the Hub that the environment names.
func openHub(p process, retrying func(stager.Retry)) (stager.Source, func(), error) {
	c, err := hf.FromEnv(p.Getenv)
	if err == nil {
		c.Log, c.Retrying = p.logger(slog.LevelWarn), retrying
		var s *hf.Source
		if s, err = hf.New(c); err == nil {
			return s, func() { s.Close() }, nil
		}
	}
	if errors.Is(err, fs.ErrPermission) { // a token that is none
		return nil, nil, err
	}
	return nil, nil, usageError{err}
}
