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
		{"a training's folder", "config.json model.safetensors -checkpoint-500/model.safetensors -checkpoint-500/optimizer.pt -optimizer.pt -training_args.bin -runs/Nov01/events.out.tfevents.1 trainer_state.json", ""},
		{"indices", "model.safetensors model.safetensors.index.json -pytorch_model.bin.index.json -tf_model.h5.index.json -flax_model.msgpack.index.json", ""},
		{"ONNX in pieces", "model.safetensors -onnx/model.onnx -onnx/model.onnx_data -onnx/model.onnx_data_1", ""},
		{"gpt-oss", "model-00000-of-00002.safetensors -metal/model.bin -original/model--00001-of-00007.safetensors -original/config.json", ""},
		{"PEFT", "adapter_config.json adapter_model.safetensors -adapter_model.bin README.md", ""},
		{"PEFT, pickle alone", "adapter_config.json adapter_model.bin README.md", "adapter_model.bin (pickle"},
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

// TestSelection applies patterns: what is taken then, or why not.
func TestSelection(t *testing.T) {
	const repo = "config.json LICENSE model.safetensors model.gguf pytorch_model.bin training_args.bin original/consolidated.00.pth original/x.safetensors"
	type patterns []string
	for _, test := range []struct {
		files            string
		include, exclude patterns
		want, fail       string
	}{
		{repo, nil, nil, "LICENSE config.json model.safetensors", ""},
		{repo, patterns{"*.gguf"}, nil, "LICENSE config.json model.gguf model.safetensors", ""},
		{repo, patterns{"*.gguf"}, patterns{"*.safetensors"}, "LICENSE config.json model.gguf", ""},
		{repo, patterns{"original/"}, nil, "LICENSE config.json model.safetensors original/consolidated.00.pth original/x.safetensors", ""},
		{repo, patterns{"original/"}, patterns{"*.pth"}, "LICENSE config.json model.safetensors original/x.safetensors", ""},
		{repo, patterns{"*"}, patterns{"*"}, "", "no weights are left"},
		{repo, patterns{"LICENSE"}, nil, "LICENSE config.json model.safetensors", ""},
		{repo, nil, patterns{"*.safetensors"}, "", "excluded by *.safetensors"},
		{repo, patterns{"training_args.bin"}, patterns{"model.safetensors"}, "", "no weights are left: model.safetensors"},
		{repo, nil, patterns{"config.json"}, "", "config.json is excluded by config.json"},
		{repo, nil, patterns{"*.md"}, "", `"*.md" matches none of the model's 8 files`},
		{repo, patterns{"MODEL.gguf"}, nil, "", `"MODEL.gguf"`},
		{repo, patterns{""}, nil, "", "empty"},
		{"config.json pytorch_model.bin", patterns{"*.bin"}, nil, "config.json pytorch_model.bin", ""},
		{"config.json pytorch_model.bin training_args.bin", patterns{"training_args.bin"}, nil, "", "only as pytorch_model.bin (pickle"},
		{"config.json a.gguf b.bin", nil, nil, "", "only as b.bin (pickle"},
		{"adapter_config.json adapter_model.safetensors config.json", nil, patterns{"config.json"}, "adapter_config.json adapter_model.safetensors", ""},
		{"adapter_config.json adapter_model.safetensors", nil, patterns{"adapter_config.json"}, "", "adapter_config.json is excluded"},
		{"checkpoint-10/model.safetensors checkpoint-10/config.json", nil, nil, "", "left by the training"},
		{"checkpoint-10/model.safetensors", patterns{"checkpoint-10/"}, nil, "checkpoint-10/model.safetensors", ""},
	} {
		var files []stager.RemoteFile
		for p := range strings.FieldsSeq(test.files) {
			files = append(files, stager.RemoteFile{Path: p})
		}
		c, err := stager.Choose(files, stager.Selection{Include: test.include, Exclude: test.exclude})
		if test.fail != "" {
			if err == nil || !strings.Contains(err.Error(), test.fail) || strings.Contains(err.Error(), "\n") {
				t.Errorf("+%q -%q of %s: %v, want %q", test.include, test.exclude, test.files, err, test.fail)
			}
			continue
		}
		var got []string
		for _, f := range c.Files {
			got = append(got, f.Path)
		}
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("+%q -%q of %s: %q, %v; want %q", test.include, test.exclude, test.files, got, err, test.want)
		}
		if len(c.Files)+len(c.Left) != len(files) {
			t.Errorf("%d files taken and %d left out of %d", len(c.Files), len(c.Left), len(files))
		}
	}
}
