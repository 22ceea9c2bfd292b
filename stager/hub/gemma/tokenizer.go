package gemma

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"unicode/utf8"
)

// Sizes of the published files, to which the made ones are padded so that a repository has the real one's size.
const (
	tokenizerJSONSize  = 33_384_568
	tokenizerModelSize = 4_689_074
)

// tokenizer returns tokenizer.json and tokenizer.model, the same for every size and seed. They are made once in a
// process, when somebody first opens one.
var tokenizer = sync.OnceValues(func() (json, model []byte) {
	v := buildVocabulary()
	return tokenizerJSON(v), tokenizerModel(v)
})

// added reports whether a piece is listed among the added tokens, which are found before text is split.
func (p piece) added() bool { return p.kind == control || p.kind == unknown || p.kind == markup }

// special reports whether decoding may leave a piece out of the text.
func special(id int) bool {
	switch id {
	case 0, 1, 2, 3, 4, 105, 106, 255999, 256000, imageToken:
		return true
	}
	return false
}

// addedTokens calls f for each added token in the order of ids. The image token is one past the vocabulary.
func addedTokens(v []piece, f func(id int, text string)) {
	for id, p := range v {
		if p.added() {
			f(id, p.text)
		}
	}
	f(imageToken, "<image_soft_token>")
}

// tokenizerJSON is tokenizer.json, for the tokenizers library.
func tokenizerJSON(v []piece) []byte {
	b := make([]byte, 0, tokenizerJSONSize)
	b = append(b, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [\n"...)
	addedTokens(v, func(id int, text string) {
		b = fmt.Appendf(b, "    {\n      \"id\": %d,\n      \"content\": %s,\n      \"single_word\": false,\n"+
			"      \"lstrip\": false,\n      \"rstrip\": false,\n      \"normalized\": false,\n      \"special\": %t\n    },\n",
			id, quoted(nil, text), special(id))
	})
	b = append(b[:len(b)-2], "\n  ],\n"...)
	b = append(b, tokenizerSteps...)
	for id, p := range v {
		b = append(b, "      "...)
		b = quoted(b, p.text)
		b = append(b, ": "...)
		b = strconv.AppendInt(b, int64(id), 10)
		b = append(b, ",\n"...)
	}
	b = append(b[:len(b)-2], "\n    },\n    \"merges\": [\n"...)
	for _, p := range v {
		for i, rest := 0, p.cuts; rest != 0; i, rest = i+1, rest>>1 {
			if rest&1 == 0 {
				continue
			}
			cut := afterRunes(p.text, i)
			b = append(b, "      [\n        "...)
			b = quoted(b, p.text[:cut])
			b = append(b, ",\n        "...)
			b = quoted(b, p.text[cut:])
			b = append(b, "\n      ],\n"...)
		}
	}
	b = append(b[:len(b)-2], "\n    ]\n  }\n}\n"...)
	return append(b, bytes.Repeat([]byte{' '}, tokenizerJSONSize-len(b))...)
}

// tokenizerSteps is what tokenizer.json says about text before and after the model: spaces become "▁", which no
// merge crosses from the left, "<bos>" comes first, and bytes come together as characters again.
const tokenizerSteps = `  "normalizer": {
    "type": "Replace",
    "pattern": {
      "String": " "
    },
    "content": "▁"
  },
  "pre_tokenizer": {
    "type": "Split",
    "pattern": {
      "String": " "
    },
    "behavior": "MergedWithPrevious",
    "invert": false
  },
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {
        "SpecialToken": {
          "id": "<bos>",
          "type_id": 0
        }
      },
      {
        "Sequence": {
          "id": "A",
          "type_id": 0
        }
      }
    ],
    "pair": [
      {
        "SpecialToken": {
          "id": "<bos>",
          "type_id": 0
        }
      },
      {
        "Sequence": {
          "id": "A",
          "type_id": 0
        }
      },
      {
        "SpecialToken": {
          "id": "<bos>",
          "type_id": 1
        }
      },
      {
        "Sequence": {
          "id": "B",
          "type_id": 1
        }
      }
    ],
    "special_tokens": {
      "<bos>": {
        "id": "<bos>",
        "ids": [
          2
        ],
        "tokens": [
          "<bos>"
        ]
      }
    }
  },
  "decoder": {
    "type": "Sequence",
    "decoders": [
      {
        "type": "Replace",
        "pattern": {
          "String": "▁"
        },
        "content": " "
      },
      {
        "type": "ByteFallback"
      },
      {
        "type": "Fuse"
      }
    ]
  },
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": "<unk>",
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": true,
    "byte_fallback": true,
    "ignore_merges": false,
    "vocab": {
`

// quoted appends text as a JSON string. Of what JSON cannot hold as it is, pieces have only these.
func quoted(b []byte, text string) []byte {
	b = append(b, '"')
	for i := range len(text) {
		switch c := text[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// afterRunes is the offset in bytes behind the first n characters.
func afterRunes(text string, n int) (offset int) {
	for range n {
		_, size := utf8.DecodeRuneInString(text[offset:])
		offset += size
	}
	return offset
}
