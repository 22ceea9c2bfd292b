package gemma

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The libraries that load a real repository load ours: transformers, tokenizers, sentencepiece, safetensors, torch.
func TestReaders(t *testing.T) {
	python := os.Getenv("HEADSTART_PYTHON")
	if python == "" {
		t.Skip("HEADSTART_PYTHON does not name a Python with transformers, torch and sentencepiece: bench/vllm/install.sh makes one")
	}
	root := t.TempDir()
	for _, size := range sizes {
		dir := filepath.Join(root, size)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r := repo(t, size, 0)
		shapes := map[string][]int64{}
		for _, f := range r.Files() {
			if filepath.Ext(f.Path) != ".safetensors" || size == "270m" {
				writeFile(t, r, f.Path, f.Size, dir)
			}
			if filepath.Ext(f.Path) == ".safetensors" {
				entries, _ := header(t, r, f.Path)
				for name, e := range entries {
					shapes[name] = e.Shape
				}
			}
		}
		b, err := json.Marshal(shapes)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "shapes.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/readers.py", root)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1", "HF_HUB_DISABLE_PROGRESS_BARS=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, r *Repo, path string, size int64, dir string) {
	t.Helper()
	src, err := r.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := os.Create(filepath.Join(dir, path))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := io.Copy(dst, io.NewSectionReader(src, 0, size)); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}
