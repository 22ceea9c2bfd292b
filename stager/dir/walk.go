package dir

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// walker lists a directory.
type walker struct {
	source *Source
	root   string   // the directory itself, without links
	blobs  []string // directories besides it that links may lead to
	found  map[string]entry
}

// passed are the directories at the top that are no part of a model: git's, the Hub client's notes in a
// directory that it downloaded to, and those of headstart fetch.
var passed = map[string]bool{".git": true, ".cache": true, ".headstart": true}

// snapshot is the directory of a commit in the Hugging Face cache. Its files are links to blobs beside it,
// and those of Xet may be links to blobs that all models share.
// https://huggingface.co/docs/huggingface_hub/guides/manage-cache
var snapshot = regexp.MustCompile(`^(.*)/models--[^/]+/snapshots/[^/]+$`)

// walk returns the files of the directory, without their digests.
func (s *Source) walk() (map[string]entry, error) {
	root, err := filepath.Abs(s.dir)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stager.Fail(fs.ErrNotExist, "the folder %s does not exist: give the one that holds the model's files", s.dir)
	}
	if err != nil {
		return nil, s.explain("", err)
	}
	if info, err := os.Stat(root); err == nil && !info.IsDir() {
		return nil, stager.Fail(fs.ErrNotExist, "%s is a file: give the folder that holds all files of the model", s.dir)
	}
	w := &walker{source: s, root: root, found: make(map[string]entry)}
	if m := snapshot.FindStringSubmatch(root); m != nil {
		w.blobs = []string{filepath.Join(root, "../../blobs"), filepath.Join(m[1], "blobs")}
	}
	return w.found, w.folder("")
}

func (w *walker) folder(rel string) error {
	entries, err := os.ReadDir(filepath.Join(w.root, rel))
	if err != nil {
		return w.source.explain(rel, err)
	}
	for _, e := range entries {
		p := path.Join(rel, e.Name())
		if rel == "" && passed[p] {
			continue
		}
		if err := w.visit(p, e.Type()); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) visit(p string, kind fs.FileMode) error {
	if kind.IsDir() {
		return w.folder(p)
	}
	refuse := func(why string) error {
		return stager.Fail(manifest.ErrInvalid, "%s: %s", filepath.Join(w.source.dir, p), why)
	}
	if err := manifest.ValidPath(p); err != nil {
		return stager.Fail(manifest.ErrInvalid, "%s has a file %.200q: %v: rename it, or move it out of the folder", w.source.dir, p, err)
	}
	name := filepath.Join(w.root, p)
	if kind&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(name)
		if errors.Is(err, fs.ErrNotExist) {
			return refuse("it is a link to a file that does not exist: complete the folder, or remove the link")
		}
		if err != nil {
			return w.source.explain(p, err)
		}
		if !w.within(target) {
			return refuse("it is a link that leads out of the folder, to " + target + ": put the file itself there")
		}
		name = target
	}
	info, err := os.Lstat(name)
	switch {
	case err != nil:
		return w.source.explain(p, err)
	case info.IsDir():
		return refuse("it is a link to a folder: put the folder itself there")
	case !info.Mode().IsRegular():
		return refuse("it is neither a file nor a folder (" + info.Mode().Type().String() + "): move it out of the folder")
	}
	w.found[p] = entry{name: name, id: identify(info)}
	return nil
}

// within reports whether a path without links is of a file that the model may have.
func (w *walker) within(target string) bool {
	for _, root := range append([]string{w.root}, w.blobs...) {
		if strings.HasPrefix(target, root+"/") {
			return true
		}
	}
	return false
}
