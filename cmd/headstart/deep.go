package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/manifest"
)

// damagedRange is a line of what verify --deep finds, as JSON.
type damagedRange struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Sum    string `json:"sum"`
	Want   string `json:"want"`
	Got    string `json:"got"`
}

// damagedError is an error in one line about any number of damaged files.
type damagedError struct{ damage []fetch.Damage }

func (e damagedError) Error() string {
	first := e.damage[0].Errors[0]
	if len(e.damage) == 1 && len(e.damage[0].Errors) == 1 {
		return first.Error()
	}
	ranges := 0
	for _, d := range e.damage {
		ranges += len(d.Errors)
	}
	return fmt.Sprintf("%d files are damaged, in %d places; the first: %v", len(e.damage), ranges, first)
}

func (e damagedError) Unwrap() error { return e.damage[0].Errors[0] }

// verifiedDeep reads the bucket back.
func (p process) verifiedDeep(ctx context.Context, source fetch.Source, m *manifest.Manifest, where string, asJSON bool) error {
	var done atomic.Int64
	var damage []fetch.Damage
	err := newProgress(&p, "verifying "+m.Model.Repo, false).During(ctx,
		func() sample { return sample{Done: done.Load(), Total: m.Size()} },
		func(ctx context.Context) (err error) {
			damage, err = fetch.VerifyBucket(ctx, source, m, func(n int64) { done.Add(n) })
			return err
		})
	if err != nil {
		return err
	}
	if len(damage) == 0 {
		return p.intact(m, where, "bytes", asJSON)
	}
	if err := p.damaged(m, where, damage, asJSON); err != nil {
		return err
	}
	return damagedError{damage}
}

// damaged lists what is wrong: as JSON every place, for a person the first of each file.
func (p process) damaged(m *manifest.Manifest, where string, damage []fetch.Damage, asJSON bool) error {
	if asJSON {
		ranges := []damagedRange{}
		for _, d := range damage {
			for _, e := range d.Errors {
				ranges = append(ranges, damagedRange{e.Path, e.Offset, e.Size, e.Sum, e.Want, e.Got})
			}
		}
		return json.NewEncoder(p.Stdout).Encode(map[string]any{
			"verified": false, "compared": "bytes", "where": where, "model": m.Model.Repo, "commit": m.Model.Commit, "files": len(m.Files), "bytes": m.Size(), "damage": ranges,
		})
	}
	for _, d := range damage {
		more := ""
		if n := len(d.Errors) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more chunks of it)", n)
		}
		if _, err := fmt.Fprintf(p.Stdout, "%v%s\n", d.Errors[0], more); err != nil {
			return err
		}
	}
	return nil
}
