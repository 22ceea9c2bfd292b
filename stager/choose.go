package stager

import (
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// Selection changes what is taken of a model. An include brings in what is left out otherwise; an exclude
// wins over everything. The patterns are those of the Hub's own client.
type Selection struct{ Include, Exclude []string }

func (s Selection) empty() bool { return len(s.Include)+len(s.Exclude) == 0 }

// ErrSelection is what errors about a Selection wrap: its patterns do not fit the model.
var ErrSelection = errors.New("the selection does not fit the model")

// Choice is what is taken of a model, and what is not.
type Choice struct {
	Files []RemoteFile // in the order of their paths
	Left  []LeftOut    // in the order of their paths
}

// LeftOut is a file that is not taken.
type LeftOut struct {
	RemoteFile
	Why string // a phrase for a person
}

// Choose returns the files of a repository that an inference server needs: everything but
//
//   - weights in other formats (pickle, ONNX, GGUF, HDF5, …) and their indices: safetensors is the one
//     that is safe to load and that names its bytes;
//   - consolidated* and original/ where Hugging Face's own safetensors are there too: the same weights
//     again, and vLLM prefers a consolidated file that it sees;
//   - what a training leaves behind beside its result (checkpoint-N/, runs/);
//   - what the Hub keeps for itself (.gitattributes, .gitignore, .cache/) and pictures.
//
// It fails where no weights remain, with the reason, where two names collide, and with ErrSelection for a
// pattern that matches no file or takes away what a model cannot do without.
func Choose(files []RemoteFile, s Selection) (Choice, error) {
	c, err := s.divide(files)
	if err != nil {
		return Choice{}, err
	}
	paths := make([]string, len(c.Files))
	for i, f := range c.Files {
		paths[i] = f.Path
	}
	if err := enough(files, c); err != nil {
		return Choice{}, err
	}
	return c, manifest.ValidPaths(paths)
}

// divide applies the rules, then the patterns.
func (s Selection) divide(files []RemoteFile) (Choice, error) {
	include, err := parseGlobs(s.Include)
	if err != nil {
		return Choice{}, err
	}
	exclude, err := parseGlobs(s.Exclude)
	if err != nil {
		return Choice{}, err
	}
	for _, g := range slices.Concat(include, exclude) {
		if !slices.ContainsFunc(files, func(f RemoteFile) bool { return g.re.MatchString(f.Path) }) {
			return Choice{}, Fail(ErrSelection, "the pattern %.100q matches none of the model's %d files: correct it, or leave it out", g.text, len(files))
		}
	}
	native := slices.ContainsFunc(files, func(f RemoteFile) bool {
		return isSafetensors(f.Path) && whyNot(f.Path, true) == ""
	})
	var c Choice
	for _, f := range files {
		why := whyNot(f.Path, native)
		if match(include, f.Path) != "" {
			why = ""
		}
		if g := match(exclude, f.Path); g != "" {
			why = "excluded by " + g
		}
		if why == "" {
			c.Files = append(c.Files, f)
		} else {
			c.Left = append(c.Left, LeftOut{f, why})
		}
	}
	slices.SortFunc(c.Files, func(a, b RemoteFile) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(c.Left, func(a, b LeftOut) int { return strings.Compare(a.Path, b.Path) })
	return c, nil
}

// enough reports, with the reason, a choice that no server can load.
func enough(files []RemoteFile, c Choice) error {
	if slices.ContainsFunc(c.Files, func(f RemoteFile) bool { return isSafetensors(f.Path) || format(f.Path) != "" && !isTraining(f.Path) }) {
		// Only patterns can take its configuration from a model that has one.
		i := slices.IndexFunc(c.Left, func(l LeftOut) bool { return isConfig(l.Path) })
		if i >= 0 && !slices.ContainsFunc(c.Files, func(f RemoteFile) bool { return isConfig(f.Path) }) {
			return Fail(ErrSelection, "%s is %s: no server can load the model without it", c.Left[i].Path, c.Left[i].Why)
		}
		return nil
	}
	if len(files) == 0 {
		return Fail(manifest.ErrInvalid, "the model has no files")
	}
	other := ""
	for _, l := range c.Left {
		switch kind := format(l.Path); {
		case isSafetensors(l.Path) && strings.HasPrefix(l.Why, "excluded"):
			return Fail(ErrSelection, "no weights are left: %s is %s", l.Path, l.Why)
		case isSafetensors(l.Path):
			return Fail(manifest.ErrInvalid, "the model has no weights but %s, which is left out (%s): include it, or stage the folder it is in", l.Path, l.Why)
		case kind == pickle || kind != "" && other == "":
			other = l.Path
		}
	}
	name := path.Base(other)
	switch kind := format(other); {
	case other == "":
		return Fail(manifest.ErrInvalid, "the model has no weights: no *.safetensors file among %d files", len(files))
	case kind == pickle:
		return Fail(manifest.ErrInvalid, "the model has weights only as %s (%s): convert it to safetensors, or ask its owner to", name, pickle)
	default:
		return Fail(manifest.ErrInvalid, "the model has weights only as %s (%s): convert it to safetensors, or include it for a server that reads it", name, kind)
	}
}

// whyNot says why a file is left out, "" where it is taken. native says that the repository has
// safetensors in the Hub's own layout.
func whyNot(p string, native bool) string {
	switch {
	case isHousekeeping(p):
		return "no part of the model"
	case isTraining(p):
		return "left by the training"
	case format(p) != "":
		return format(p)
	case strings.HasSuffix(p, ".index.json") && format(strings.TrimSuffix(p, ".index.json")) != "":
		return "the index of weights that are left out"
	case native && isDuplicate(p):
		return "the same weights in another layout"
	}
	return ""
}

func isSafetensors(p string) bool { return strings.HasSuffix(strings.ToLower(p), ".safetensors") }

const pickle = "pickle, which can run code when it is loaded"

// format says in what other format than safetensors a file has weights, "" for none. A name is judged by
// its end, whatever its case.
func format(p string) string {
	switch ext := strings.ToLower(path.Ext(p)); ext {
	case ".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle":
		return pickle
	case ".gguf", ".ggml":
		return "GGUF, not safetensors"
	case ".h5", ".keras", ".msgpack", ".onnx", ".ot", ".tflite", ".task", ".mlmodel", ".npz", ".nemo":
		return "weights in another format than safetensors"
	default:
		base := path.Base(p)
		if strings.HasPrefix(ext, ".onnx_data") || strings.HasPrefix(base, "flax_model") || strings.HasPrefix(base, "tf_model") {
			return "weights in another format than safetensors"
		}
	}
	return ""
}

func isDuplicate(p string) bool {
	return strings.HasPrefix(p, "original/") || strings.HasPrefix(path.Base(p), "consolidated")
}

// training is what transformers' Trainer writes beside a model.
var training = regexp.MustCompile(`^(.*/)?(checkpoint-\d+/|runs/|events\.out\.tfevents|(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)$)`)

func isTraining(p string) bool { return training.MatchString(p) }

// isConfig tells the file without which no server knows what the weights are: a model's, a LoRA
// adapter's, Mistral's own.
func isConfig(p string) bool {
	return p == "config.json" || p == "adapter_config.json" || p == "params.json"
}

func isHousekeeping(p string) bool {
	switch first, _, _ := strings.Cut(p, "/"); first {
	case ".gitattributes", ".gitignore", ".cache", ".git":
		return true
	}
	switch base := path.Base(p); base {
	case ".DS_Store", "CACHEDIR.TAG":
		return true
	}
	switch strings.ToLower(path.Ext(p)) {
	case ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4", ".pdf":
		return true
	}
	return false
}
