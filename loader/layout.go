package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/mount"
	"github.com/headstart-serving/headstart/manifest"
)

// Layout is where in a target a model's files are.
type Layout string

const (
	Plain Layout = "plain" // directly below the target
	// HF is what huggingface_hub finds a model in offline: hub/models--org--name/refs/main, which holds
	// the commit without a newline, and snapshots/<commit>/ beside it with the files. Plain files there
	// are enough; nothing is written or locked (huggingface_hub 2.4.0, read-only, HF_HUB_OFFLINE=1).
	HF Layout = "hf"
)

// ParseLayout reads a layout's name; none means Plain.
func ParseLayout(s string) (Layout, error) {
	switch l := Layout(s); l {
	case "":
		return Plain, nil
	case Plain, HF:
		return l, nil
	}
	return "", fetch.Fail(fs.ErrInvalid, "layout %q: it is %s or %s", s, Plain, HF)
}

// inside returns the folder of the files below a target, "" for the target itself. It is the same
// while a model loads and afterwards: vLLM's compile caches depend on the path.
func (y Layout) inside(m manifest.Model) string {
	if y != HF {
		return ""
	}
	return filepath.Join(hubFolder(m), "snapshots", m.Commit)
}

// hubFolder is where the Hub's clients keep a repository below HF_HOME. A name has no "--".
func hubFolder(m manifest.Model) string {
	return filepath.Join("hub", "models--"+strings.ReplaceAll(m.Repo, "/", "--"))
}

// files returns the path at which le shows the model's files.
func (le *lease) files() string { return filepath.Join(le.Target, le.Layout.inside(le.model.m.Model)) }

// bind makes source, which has the files, appear as the lease says. The caller has the model's token.
func (le *lease) bind(source string) error {
	inside := le.Layout.inside(le.model.m.Model)
	if inside == "" {
		return mount.Bind(source, le.Target)
	}
	dir := le.model.loader.frame(le.Entry)
	if err := frameModel(dir, le.model.m.Model, le.Ref); err != nil {
		return fmt.Errorf("a folder for %s in the layout of the Hub's clients: %w", le.Model, err)
	}
	return mount.BindInside(dir, source, inside, le.Target)
}

// frame is the folder of what the layout HF has around the files of an entry.
func (l *Loader) frame(entry string) string { return filepath.Join(l.cfg.Cache.Dir(), "hf", entry) }

// frameModel writes a frame: it names the commit by main, which a client asks for that was told no
// revision, and by the revision that the model was asked for.
func frameModel(dir string, m manifest.Model, ref string) error {
	asked, err := manifest.ParseReference(ref)
	if err != nil {
		return err
	}
	hub := filepath.Join(dir, hubFolder(m))
	if err := os.MkdirAll(filepath.Join(hub, "snapshots", m.Commit), 0o755); err != nil {
		return err
	}
	for _, revision := range []string{"main", asked.Revision} {
		if revision == "" || manifest.IsCommit(revision) {
			continue
		}
		if err := writeRef(filepath.Join(hub, "refs"), revision, m.Commit); err != nil {
			return err
		}
	}
	return nil
}

// writeRef writes a ref in one step: other targets show it already.
func writeRef(dir, revision, commit string) error {
	path := filepath.Join(dir, filepath.FromSlash(revision))
	if !filepath.IsLocal(revision) {
		return fetch.Fail(fs.ErrInvalid, "revision %q cannot be a file's name", revision)
	}
	if is, err := os.ReadFile(path); err == nil && string(is) == commit {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(dir), ".ref-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(commit)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// sweepFrames takes away what a process that died has left mounted in frames, and the frames whose
// entries have gone.
func (l *Loader) sweepFrames(entries map[string]*cache.Entry) error {
	all := l.frame("")
	table, err := mount.Table()
	if err != nil {
		return err
	}
	for _, p := range table {
		if strings.HasPrefix(p.Target, all+"/") {
			if err := mount.Unmount(p.Target); err != nil {
				return err
			}
		}
	}
	frames, err := os.ReadDir(all)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range frames {
		if entries[f.Name()] == nil {
			if err := os.RemoveAll(l.frame(f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
