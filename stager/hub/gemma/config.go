package gemma

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
)

// object is a JSON object. It is written with its keys in order, as the tools that publish models do.
type object = map[string]any

// Numbers that Go would write otherwise than Python does.
const (
	zero    = json.Number("0.0")
	epsilon = json.Number("1e-06")
	spread  = json.Number("0.02")
)

const (
	transformers    = "4.50.0.dev0" // the version that wrote the published files
	transformers270 = "4.55.0.dev0"
)

// written is v as Python's json.dump(v, indent=2, sort_keys=True) writes it, with a newline.
func written(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic("gemma: " + err.Error()) // maps, strings and numbers
	}
	return b.Bytes()
}

// config is config.json. The larger models leave out what Transformers' defaults say, as the published ones do.
func (d dimensions) config(size string) object {
	if d.vision {
		return d.visionConfig(size)
	}
	c := object{
		"architectures":           []string{"Gemma3ForCausalLM"},
		"attention_bias":          false,
		"attention_dropout":       zero,
		"attn_logit_softcapping":  nil,
		"bos_token_id":            2,
		"cache_implementation":    "hybrid",
		"eos_token_id":            []int{1, 106},
		"final_logit_softcapping": nil,
		"head_dim":                d.head,
		"hidden_activation":       "gelu_pytorch_tanh",
		"hidden_size":             d.hidden,
		"initializer_range":       spread,
		"intermediate_size":       d.mlp,
		"max_position_embeddings": 32768,
		"model_type":              "gemma3_text",
		"num_attention_heads":     d.heads,
		"num_hidden_layers":       d.layers,
		"num_key_value_heads":     d.kvHeads,
		"pad_token_id":            0,
		"query_pre_attn_scalar":   256,
		"rms_norm_eps":            epsilon,
		"rope_local_base_freq":    10000,
		"rope_scaling":            nil,
		"rope_theta":              1000000,
		"sliding_window":          d.window,
		"sliding_window_pattern":  6,
		"torch_dtype":             "bfloat16",
		"transformers_version":    transformers,
		"use_cache":               true,
		"vocab_size":              vocabulary,
	}
	if size == "270m" { // published later, by a later version
		delete(c, "cache_implementation")
		delete(c, "sliding_window_pattern")
		c["_sliding_window_pattern"] = 6
		c["layer_types"] = d.layerTypes()
		c["rope_local_base_freq"], c["rope_theta"] = json.Number("10000.0"), json.Number("1000000.0")
		c["transformers_version"] = transformers270
		c["use_bidirectional_attention"] = false
	}
	return c
}

// layerTypes names each layer's kind of attention: every sixth sees all tokens, the others a window.
func (d dimensions) layerTypes() (types []string) {
	for i := range d.layers {
		if (i+1)%6 == 0 {
			types = append(types, "full_attention")
		} else {
			types = append(types, "sliding_attention")
		}
	}
	return types
}

func (d dimensions) visionConfig(size string) object {
	text := object{
		"hidden_size":       d.hidden,
		"intermediate_size": d.mlp,
		"model_type":        "gemma3_text",
		"num_hidden_layers": d.layers,
		"rope_scaling":      object{"factor": json.Number("8.0"), "rope_type": "linear"},
		"sliding_window":    d.window,
	}
	if size != "4b" {
		text["num_attention_heads"], text["num_key_value_heads"] = d.heads, d.kvHeads
	}
	if size == "27b" {
		text["head_dim"], text["query_pre_attn_scalar"] = d.head, d.hidden/d.heads
	}
	return object{
		"architectures":        []string{"Gemma3ForConditionalGeneration"},
		"boi_token_index":      255999,
		"eoi_token_index":      256000,
		"eos_token_id":         []int{1, 106},
		"image_token_index":    imageToken,
		"initializer_range":    spread,
		"mm_tokens_per_image":  256,
		"model_type":           "gemma3",
		"text_config":          text,
		"torch_dtype":          "bfloat16",
		"transformers_version": transformers,
		"vision_config": object{
			"hidden_size":         visionHidden,
			"image_size":          visionImage,
			"intermediate_size":   visionMLP,
			"model_type":          "siglip_vision_model",
			"num_attention_heads": 16,
			"num_hidden_layers":   visionLayers,
			"patch_size":          visionPatch,
			"vision_use_head":     false,
		},
	}
}

// smallFiles are the files that a repository keeps in git itself: everything but weights and tokenizer.
func (d dimensions) smallFiles(size string, shards [][]tensor) map[string][]byte {
	files := map[string][]byte{
		".gitattributes":          []byte(attributes()),
		"README.md":               []byte(fmt.Sprintf(card, size)),
		"added_tokens.json":       written(object{"<image_soft_token>": imageToken}),
		"config.json":             written(d.config(size)),
		"generation_config.json":  written(generationConfig(size)),
		"special_tokens_map.json": written(specialTokensMap()),
		"tokenizer_config.json":   tokenizerConfig(size != "270m"),
	}
	if size == "270m" {
		files["chat_template.jinja"] = []byte(chatTemplate)
	}
	if d.vision {
		files["chat_template.json"] = written(object{"chat_template": chatTemplate})
		files["preprocessor_config.json"] = written(preprocessorConfig())
		files["processor_config.json"] = written(object{"image_seq_length": 256, "processor_class": "Gemma3Processor"})
	}
	if len(shards) > 1 {
		files["model.safetensors.index.json"] = written(index(shards))
	}
	return files
}

// index says which file each tensor is in.
func index(shards [][]tensor) object {
	var total int64
	place := object{}
	for i, shard := range shards {
		for _, t := range shard {
			total += t.size()
			place[t.name] = shardName(i, len(shards))
		}
	}
	return object{"metadata": object{"total_size": total}, "weight_map": place}
}

func generationConfig(size string) object {
	c := object{
		"bos_token_id":         2,
		"cache_implementation": "hybrid",
		"do_sample":            true,
		"eos_token_id":         []int{1, 106},
		"pad_token_id":         0,
		"top_k":                64,
		"top_p":                json.Number("0.95"),
		"transformers_version": transformers,
	}
	if size == "270m" {
		c["transformers_version"] = transformers270
	}
	return c
}

func preprocessorConfig() object {
	half := []json.Number{"0.5", "0.5", "0.5"}
	return object{
		"do_convert_rgb":                     nil,
		"do_normalize":                       true,
		"do_pan_and_scan":                    nil,
		"do_rescale":                         true,
		"do_resize":                          true,
		"image_mean":                         half,
		"image_processor_type":               "Gemma3ImageProcessor",
		"image_seq_length":                   256,
		"image_std":                          half,
		"pan_and_scan_max_num_crops":         nil,
		"pan_and_scan_min_crop_size":         nil,
		"pan_and_scan_min_ratio_to_activate": nil,
		"processor_class":                    "Gemma3Processor",
		"resample":                           2,
		"rescale_factor":                     json.Number("0.00392156862745098"),
		"size":                               object{"height": visionImage, "width": visionImage},
	}
}

// chatTemplate turns messages into Gemma's turns. A system message becomes the beginning of the first turn.
//
//go:embed chat_template.jinja
var chatTemplate string

// card is README.md, with the size to fill in.
//
//go:embed card.md
var card string

// attributes is .gitattributes: which files are large.
func attributes() string {
	var b strings.Builder
	for _, pattern := range strings.Fields(`*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel
		*.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors
		saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents* tokenizer.json`) {
		fmt.Fprintf(&b, "%s filter=lfs diff=lfs merge=lfs -text\n", pattern)
	}
	return b.String()
}
