package stager

import (
	"path"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// Choose returns the files of a repository that an inference server needs, in the order of their
// paths: everything but
//
//   - weights in other formats (pickle, ONNX, GGUF, HDF5, …): safetensors is the one that is safe to
//     load and that names its bytes;
//   - consolidated* and original/ where Hugging Face's own safetensors are there too: the same weights
//     again, and vLLM prefers a consolidated file that it sees;
//   - what the Hub keeps for itself (.gitattributes, .gitignore, .cache/) and pictures.
//
// It fails where no weights remain, with the reason, and where two names collide.
func Choose(files []RemoteFile) ([]RemoteFile, error) {
	native := slices.ContainsFunc(files, func(f RemoteFile) bool {
		return isSafetensors(f.Path) && !isDuplicate(f.Path)
	})
	var chosen []RemoteFile
	var paths []string
	weights, other := false, ""
	for _, f := range files {
		switch {
		case isForeign(f.Path):
			other = f.Path
		case isHousekeeping(f.Path), native && isDuplicate(f.Path):
		default:
			weights = weights || isSafetensors(f.Path)
			chosen = append(chosen, f)
			paths = append(paths, f.Path)
		}
	}
	switch {
	case len(files) == 0:
		return nil, Fail(manifest.ErrInvalid, "the repository has no files")
	case !weights && other != "":
		return nil, Fail(manifest.ErrInvalid, "the repository has weights only as %s (pickle, which can run code when it is loaded, or another format that servers do not read): convert it to safetensors, or ask its owner to", path.Base(other))
	case !weights:
		return nil, Fail(manifest.ErrInvalid, "the repository has no weights: no *.safetensors file among %d files", len(files))
	}
	if err := manifest.ValidPaths(paths); err != nil {
		return nil, err
	}
	slices.SortFunc(chosen, func(a, b RemoteFile) int { return strings.Compare(a.Path, b.Path) })
	return chosen, nil
}

func isSafetensors(p string) bool { return strings.HasSuffix(strings.ToLower(p), ".safetensors") }

// isForeign tells weights in a format that is left out. A name is judged by its end, whatever its case.
func isForeign(p string) bool {
	switch strings.ToLower(path.Ext(p)) {
	case ".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".h5", ".keras", ".msgpack", ".onnx", ".onnx_data", ".ot",
		".gguf", ".ggml", ".tflite", ".task", ".mlmodel", ".npz", ".nemo":
		return true
	}
	return strings.HasPrefix(path.Base(p), "flax_model") || strings.HasPrefix(path.Base(p), "tf_model")
}

func isDuplicate(p string) bool {
	return strings.HasPrefix(p, "original/") || strings.HasPrefix(path.Base(p), "consolidated")
}

func isHousekeeping(p string) bool {
	if p == ".gitattributes" || p == ".gitignore" || strings.HasPrefix(p, ".cache/") || strings.HasPrefix(p, ".git/") {
		return true
	}
	switch strings.ToLower(path.Ext(p)) {
	case ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4", ".pdf":
		return true
	}
	return false
}
