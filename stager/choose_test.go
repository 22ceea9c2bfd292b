package stager_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// TestChoose lists repositories and marks with a minus what is left out.
func TestChoose(t *testing.T) {
	for _, test := range []struct{ name, files, fail string }{
		{"gemma 3", "-.gitattributes LICENSE README.md added_tokens.json chat_template.json config.json generation_config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json preprocessor_config.json processor_config.json special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json", ""},
		{"llama", "model-00001-of-00001.safetensors -original/consolidated.00.pth -original/params.json -original/tokenizer.model USE_POLICY.md chat_template.jinja", ""},
		{"mistral, both", "config.json -consolidated.safetensors model-00001-of-00003.safetensors params.json tekken.json", ""},
		{"mistral, native alone", "consolidated.safetensors params.json tekken.json", ""},
		{"shards, native alone", "consolidated-00001-of-00002.safetensors consolidated-00002-of-00002.safetensors consolidated.safetensors.index.json params.json", ""},
		{"everything", "model.safetensors -pytorch_model.bin -pytorch_model-00001-of-00002.bin -tf_model.h5 -flax_model.msgpack -model.onnx -onnx/model.onnx_data -x.pt -x.pth -x.ckpt -rust_model.ot -model.Q4_K_M.gguf -MODEL.GGUF vocab.txt merges.txt -picture.PNG -.cache/x modeling_x.py", ""},
		{"sentence transformers", "model.safetensors modules.json 1_Pooling/config.json 2_Dense/model.safetensors", ""},
		{"a LoRA adapter", "adapter_config.json adapter_model.safetensors README.md", ""},
		{"pickle only", "config.json pytorch_model.bin", "pytorch_model.bin (pickle"},
		{"pickle in original only", "config.json original/consolidated.00.pth", "consolidated.00.pth (pickle"},
		{"GGUF only", "README.md model.gguf", "model.gguf"},
		{"no weights", "README.md config.json", "no weights"},
		{"nothing", "", "no files"},
		{"two names that collide", "model.safetensors README.md readme.md", "by case only"},
		{"names that would collide, left out", "model.safetensors -a.PNG -a.png", ""},
	} {
		var files []stager.RemoteFile
		var want []string
		for name := range strings.FieldsSeq(test.files) {
			path, out := strings.CutPrefix(name, "-")
			files = append(files, stager.RemoteFile{Path: path})
			if !out {
				want = append(want, path)
			}
		}
		choice, err := stager.Choose(files, stager.Selection{})
		if test.fail != "" {
			if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		var got []string
		for i, f := range choice.Files {
			got = append(got, f.Path)
			if i > 0 && f.Path <= choice.Files[i-1].Path {
				t.Errorf("%s: %s after %s", test.name, f.Path, choice.Files[i-1].Path)
			}
		}
		for _, p := range want {
			if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+p+" ") {
				t.Errorf("%s: %s is left out", test.name, p)
			}
		}
		if err != nil || len(got) != len(want) {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, want)
		}
	}
}
