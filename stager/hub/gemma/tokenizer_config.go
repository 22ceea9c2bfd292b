package gemma

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
)

func specialTokensMap() object {
	m := object{
		"boi_token":   "<start_of_image>",
		"eoi_token":   "<end_of_image>",
		"image_token": "<image_soft_token>",
	}
	for _, name := range []string{"bos", "eos", "pad", "unk"} {
		m[name+"_token"] = object{
			"content":     "<" + name + ">",
			"lstrip":      false,
			"normalized":  false,
			"rstrip":      false,
			"single_word": false,
		}
	}
	return m
}

// addedDecoder is the list of added tokens in tokenizer_config.json, as text: written would put its numbers into the
// order of strings. It is the same in all and made once in a process.
var addedDecoder = sync.OnceValue(func() []byte {
	b := []byte("{")
	addedTokens(frame(), func(id int, text string) {
		b = fmt.Appendf(b, "\n    \"%d\": {\n      \"content\": %s,\n      \"lstrip\": false,\n      \"normalized\": false,\n"+
			"      \"rstrip\": false,\n      \"single_word\": false,\n      \"special\": %t\n    },", id, quoted(nil, text), special(id))
	})
	return append(b[:len(b)-1], "\n  }"...)
})

// tokenizerConfig is tokenizer_config.json, which lists all added tokens once more.
func tokenizerConfig(withTemplate bool) []byte {
	images := object{"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
	c := object{
		"add_bos_token":                 true,
		"add_eos_token":                 false,
		"added_tokens_decoder":          "HERE",
		"bos_token":                     "<bos>",
		"clean_up_tokenization_spaces":  false,
		"eos_token":                     "<eos>",
		"extra_special_tokens":          images,
		"model_max_length":              json.Number("1000000000000000019884624838656"),
		"pad_token":                     "<pad>",
		"processor_class":               "Gemma3Processor",
		"sp_model_kwargs":               nil,
		"spaces_between_special_tokens": false,
		"tokenizer_class":               "GemmaTokenizer",
		"unk_token":                     "<unk>",
		"use_default_system_prompt":     false,
	}
	for name, token := range images {
		c[name] = token
	}
	if withTemplate {
		c["chat_template"] = chatTemplate
	}
	return bytes.Replace(written(c), []byte(`"HERE"`), addedDecoder(), 1)
}
