package cache_test

import (
	"errors"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/manifest"
)

// A chunk of a complete entry that is doubted is read back, and received again if it is wrong, by this
// process and by the next one; the others are not touched.
func TestDoubt(t *testing.T) {
	m := fetchtest.NewModel(t, "org/model", sizes())
	for name, again := range map[string]bool{"this process": false, "the next process": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir)
			defer func() { closing(t, c) }()
			e := entry(t, c, m)
			fill(t, e, m, nil)
			if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil {
				t.Fatal(err)
			}
			patch(t, e.Path(0), chunk, string(m.Content("a/b/2n")[chunk]^1)) // by root
			var doubted []manifest.Chunk
			for i, f := range m.Manifest.Files {
				for ch := range m.Manifest.ChunksOf(i) {
					if intact := e.Intact(i, ch.Index, make([]byte, 1000)); intact != (f.Path != "a/b/2n" || ch.Index != 1) {
						t.Errorf("%s %d: intact %v", f.Path, ch.Index, intact)
					}
					if f.Path == "a/b/2n" {
						doubted = append(doubted, ch)
					}
				}
			}
			if err := errors.Join(e.Doubt(doubted), e.Doubt(doubted)); err != nil {
				t.Fatal(err)
			}
			if e.Complete() || e.Durable() || e.FileComplete(0) || !e.FileComplete(1) || e.Bytes() != m.Manifest.Size()-2*chunk {
				t.Errorf("%d bytes, complete %v", e.Bytes(), e.Complete())
			}
			if err := e.Sync(t.Context()); err != nil || e.Durable() {
				t.Errorf("synced: %v", err)
			}
			if again {
				closing(t, c)
				c = open(t, dir)
				e = c.Entries()[0]
			}
			if received, rechecked := fill(t, e, m, nil); received != 1 || rechecked != 1 {
				t.Errorf("received %d, rechecked %d", received, rechecked)
			}
			if err := errors.Join(e.Seal(), e.Sync(t.Context())); err != nil || !e.Durable() {
				t.Fatal(err)
			}
			checkSealed(t, e, m)
		})
	}
}
