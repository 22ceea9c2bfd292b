package gemma

import (
	"fmt"
	"math"
	"strings"
)

// vocabulary is the number of entries of Gemma 3's tokenizer. Models with vision have 64 more rows in their embedding.
const vocabulary = 262144

// dimensions are what tells one size of Gemma 3 from another. Source: the published config.json files and, for
// what those leave out, the defaults of Transformers' Gemma3TextConfig.
type dimensions struct {
	hidden, mlp, layers  int
	heads, kvHeads, head int // query heads, key and value heads, width of one head
	window               int // tokens that a layer with local attention sees
	vision               bool
}

// sizeNames lists the keys of sizes, smallest first.
const sizeNames = "270m, 1b, 4b, 12b or 27b"

// sizeOf returns the dimensions of a size by its name.
func sizeOf(name string) (d dimensions, ok bool) {
	switch name {
	case "270m":
		return dimensions{640, 2048, 18, 4, 1, 256, 512, false}, true
	case "1b":
		return dimensions{1152, 6912, 26, 4, 1, 256, 512, false}, true
	case "4b":
		return dimensions{2560, 10240, 34, 8, 4, 256, 1024, true}, true
	case "12b":
		return dimensions{3840, 15360, 48, 16, 8, 256, 1024, true}, true
	case "27b":
		return dimensions{5376, 21504, 62, 32, 16, 128, 1024, true}, true
	}
	return d, false
}

// The SigLIP vision tower, the same in every size that has one.
const (
	visionHidden = 1152
	visionMLP    = 4304
	visionLayers = 27
	visionPatch  = 14
	visionImage  = 896
)

// A tensor is a name, a shape and, once laid out, a place in a file.
type tensor struct {
	name       string
	shape      []int
	begin, end int64 // offsets in bytes from the end of the file's header
}

func (t tensor) size() int64 {
	n := int64(2) // bytes of a bfloat16
	for _, d := range t.shape {
		n *= int64(d)
	}
	return n
}

// distribution returns the mean and the deviation of a tensor's values. They are not those of a trained Gemma: they
// are chosen so that greedy decoding does not get stuck on one token, by letting the MLPs decide what comes next,
// not the averaged context nor the input.
func (t tensor) distribution() (mean, std float64) {
	norm := strings.HasSuffix(t.name, "norm.weight") || strings.Contains(t.name, "layer_norm")
	switch {
	case strings.Contains(t.name, "embed_tokens"):
		return 0, 0.5 / math.Sqrt(float64(t.shape[len(t.shape)-1]))
	case !norm:
		return 0, 0.02
	case strings.Contains(t.name, "post_attention"):
		return -0.7, 0.05
	case strings.HasPrefix(t.name, "vision") && strings.HasSuffix(t.name, "weight"):
		return 1, 0.05
	}
	return 0, 0.05
}

// tensors lists a model's tensors in the order in which PyTorch's state_dict has them: that order decides which
// shard a tensor comes into. The output layer is the embedding and is not stored.
func (d dimensions) tensors() []tensor {
	if !d.vision {
		return d.text("model.", vocabulary)
	}
	return append(d.visionTower(), d.text("language_model.model.", vocabulary+64)...)
}

func (d dimensions) text(prefix string, rows int) []tensor {
	list := []tensor{matrix(prefix+"embed_tokens", rows, d.hidden)}
	for i := range d.layers {
		layer := fmt.Sprintf("%slayers.%d.", prefix, i)
		list = append(list,
			matrix(layer+"self_attn.q_proj", d.heads*d.head, d.hidden),
			matrix(layer+"self_attn.k_proj", d.kvHeads*d.head, d.hidden),
			matrix(layer+"self_attn.v_proj", d.kvHeads*d.head, d.hidden),
			matrix(layer+"self_attn.o_proj", d.hidden, d.heads*d.head),
			matrix(layer+"self_attn.q_norm", d.head),
			matrix(layer+"self_attn.k_norm", d.head),
			matrix(layer+"mlp.gate_proj", d.mlp, d.hidden),
			matrix(layer+"mlp.up_proj", d.mlp, d.hidden),
			matrix(layer+"mlp.down_proj", d.hidden, d.mlp),
			matrix(layer+"input_layernorm", d.hidden),
			matrix(layer+"post_attention_layernorm", d.hidden),
			matrix(layer+"pre_feedforward_layernorm", d.hidden),
			matrix(layer+"post_feedforward_layernorm", d.hidden))
	}
	return append(list, matrix(prefix+"norm", d.hidden))
}

func (d dimensions) visionTower() []tensor {
	const tower = "vision_tower.vision_model."
	side := visionImage / visionPatch
	list := affine(tower+"embeddings.patch_embedding", visionHidden, 3, visionPatch, visionPatch)
	list = append(list, matrix(tower+"embeddings.position_embedding", side*side, visionHidden))
	for i := range visionLayers {
		layer := fmt.Sprintf("%sencoder.layers.%d.", tower, i)
		for _, name := range []string{"k_proj", "v_proj", "q_proj", "out_proj"} {
			list = append(list, affine(layer+"self_attn."+name, visionHidden, visionHidden)...)
		}
		list = append(list, affine(layer+"layer_norm1", visionHidden)...)
		list = append(list, affine(layer+"mlp.fc1", visionMLP, visionHidden)...)
		list = append(list, affine(layer+"mlp.fc2", visionHidden, visionMLP)...)
		list = append(list, affine(layer+"layer_norm2", visionHidden)...)
	}
	list = append(list, affine(tower+"post_layernorm", visionHidden)...)
	return append(list,
		tensor{name: "multi_modal_projector.mm_input_projection_weight", shape: []int{visionHidden, d.hidden}},
		matrix("multi_modal_projector.mm_soft_emb_norm", visionHidden))
}

// matrix is a layer's weight.
func matrix(layer string, shape ...int) tensor {
	return tensor{name: layer + ".weight", shape: shape}
}

// affine is a layer's weight and its bias, one value for each row.
func affine(layer string, shape ...int) []tensor {
	return []tensor{matrix(layer, shape...), {name: layer + ".bias", shape: shape[:1]}}
}
