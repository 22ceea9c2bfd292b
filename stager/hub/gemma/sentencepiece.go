package gemma

import (
	"encoding/binary"
	"math"
)

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
