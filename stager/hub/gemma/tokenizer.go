package gemma

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
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

// tokenizerModel is tokenizer.model: the same vocabulary as a ModelProto of sentencepiece_model.proto. Merges are
// not stored there: of the pieces that two neighbours could make, the one with the highest score is made.
func tokenizerModel(v []piece) []byte {
	b := make([]byte, 0, tokenizerModelSize)
	for id, p := range v {
		var score float32
		if p.kind == normal {
			score = float32(firstWord - 1 - id)
		}
		m := lengthPrefixed(nil, 1, p.text)
		m = binary.LittleEndian.AppendUint32(append(m, 2<<3|5), math.Float32bits(score))
		if p.kind != normal {
			m = varint(m, 3, sentencepieceType(p.kind))
		}
		b = lengthPrefixed(b, 1, string(m))
	}
	var trainer, normalizer []byte
	trainer = varint(trainer, 3, 2)          // model_type: BPE
	trainer = varint(trainer, 4, vocabulary) // vocab_size
	trainer = varint(trainer, 35, 1)         // byte_fallback
	trainer = varint(trainer, 40, 3)         // unk_id
	trainer = varint(trainer, 41, 2)         // bos_id
	trainer = varint(trainer, 42, 1)         // eos_id
	trainer = varint(trainer, 43, 0)         // pad_id
	trainer = lengthPrefixed(trainer, 45, "<unk>")
	trainer = lengthPrefixed(trainer, 46, "<bos>")
	trainer = lengthPrefixed(trainer, 47, "<eos>")
	trainer = lengthPrefixed(trainer, 48, "<pad>")
	normalizer = lengthPrefixed(normalizer, 1, "identity")
	normalizer = varint(normalizer, 3, 0) // add_dummy_prefix
	normalizer = varint(normalizer, 4, 0) // remove_extra_whitespaces
	normalizer = varint(normalizer, 5, 1) // escape_whitespaces
	b = lengthPrefixed(b, 2, string(trainer))
	b = lengthPrefixed(b, 3, string(normalizer))
	// A field that the schema leaves to others, which readers skip, fills the file up. Its tag and length take 5 bytes.
	return lengthPrefixed(b, 200, string(make([]byte, tokenizerModelSize-len(b)-5)))
}

func sentencepieceType(k kind) uint64 {
	switch k {
	case unknown:
		return 2
	case control:
		return 3
	case markup:
		return 4 // user defined
	case octet:
		return 6
	}
	return 1
}

// varint appends a protobuf field with a number, lengthPrefixed one with a string or message.
func varint(b []byte, field, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, field<<3), value)
}

func lengthPrefixed(b []byte, field uint64, value string) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, field<<3|2), uint64(len(value)))
	return append(b, value...)
}
