package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

func TestResolve(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", map[string]int{"config.json": 5})
	model := m.Manifest.Model
	other := model
	other.Commit = strings.Repeat("0", 40)
	pin := manifest.Sum(m.Raw)
	for name, c := range map[string]struct {
		ref    string
		change func(objects map[string][]byte)
		err    error
		text   string
	}{
		"main":             {ref: "org/model"},
		"named":            {ref: "org/model@main"},
		"commit":           {ref: "org/model@" + model.Commit},
		"pin":              {ref: "org/model@sha256:" + pin.String()},
		"tag with slash":   {ref: "org/model@refs/pr/1", change: func(o map[string][]byte) { o[manifest.RefKey("org/model", "refs/pr/1")] = []byte(model.Commit) }},
		"not staged":       {ref: "org/other", err: fs.ErrNotExist, text: "run: headstart stage org/other"},
		"no such ref":      {ref: "org/model@v2", err: fs.ErrNotExist, text: "run: headstart stage org/model@v2"},
		"no such commit":   {ref: "org/model@" + other.Commit, err: fs.ErrNotExist, text: "run: headstart stage org/model@000"},
		"no such pin":      {ref: "org/model@sha256:" + strings.Repeat("1", 64), err: fs.ErrNotExist, text: "with that pin"},
		"ref to nothing":   {ref: "org/model", change: func(o map[string][]byte) { delete(o, model.Key()) }, err: fs.ErrNotExist, text: "run: headstart stage org/model"},
		"ref is no commit": {ref: "org/model", change: func(o map[string][]byte) { o[manifest.RefKey("org/model", "main")] = []byte("../../etc") }, err: manifest.ErrInvalid, text: "not a commit"},
		"ref too long":     {ref: "org/model", change: func(o map[string][]byte) { o[manifest.RefKey("org/model", "main")] = bytes.Repeat([]byte("a"), 101) }, err: manifest.ErrInvalid},
		"no manifest":      {ref: "org/model", change: func(o map[string][]byte) { o[model.Key()] = []byte("{}") }, err: manifest.ErrInvalid},
		"too long":         {ref: "org/model", change: func(o map[string][]byte) { o[model.Key()] = make([]byte, manifest.MaxSize+1) }, err: manifest.ErrInvalid},
		"of another":       {ref: "org/model@" + other.Commit, change: func(o map[string][]byte) { o[other.Key()] = m.Raw }, err: manifest.ErrInvalid, text: "says that it is of org/model@093f"},
		"pinned copy":      {ref: "org/model@sha256:" + pin.String(), change: func(o map[string][]byte) { delete(o, model.Key()); o[other.Key()] = m.Raw }, err: manifest.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			objects := maps.Clone(m.Objects)
			if c.change != nil {
				c.change(objects)
			}
			ref, err := manifest.ParseReference(c.ref)
			if err != nil {
				t.Fatal(err)
			}
			got, raw, err := fetch.Resolve(t.Context(), &fetchtest.Memory{Objects: objects}, ref)
			if c.err == nil {
				if err != nil || got.Model != model || !bytes.Equal(raw, m.Raw) {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") || got != nil || raw != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// flaky fails its first answers.
type flaky struct {
	fetch.Source
	errs []error
	gets int
}

func (s *flaky) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	s.gets++
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		return nil, err
	}
	return s.Source.Get(ctx, key, limit)
}

func TestResolveTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fetchtest.NewModel(t, "org/model", map[string]int{"config.json": 5})
		src := &flaky{Source: &fetchtest.Memory{Objects: m.Objects}, errs: []error{fetchtest.ErrReset, fetchtest.Status(503)}}
		if _, _, err := fetch.Resolve(t.Context(), src, m.Ref()); err != nil || src.gets != 4 {
			t.Errorf("%d requests, %v", src.gets, err)
		}
		src = &flaky{errs: []error{fetch.Fail(fs.ErrPermission, "no")}}
		if _, _, err := fetch.Resolve(t.Context(), src, m.Ref()); !errors.Is(err, fs.ErrPermission) || src.gets != 1 {
			t.Errorf("%d requests, %v", src.gets, err)
		}
		for range 9 {
			src.errs = append(src.errs, fetchtest.ErrReset)
		}
		if _, _, err := fetch.Resolve(t.Context(), src, m.Ref()); !errors.Is(err, fetchtest.ErrReset) {
			t.Errorf("%v", err)
		}
	})
}
