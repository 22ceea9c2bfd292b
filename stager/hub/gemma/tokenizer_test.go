package gemma

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"math/bits"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

var pieces = sync.OnceValue(buildVocabulary)

func TestVocabularyLayout(t *testing.T) {
	v := pieces()
	if len(v) != vocabulary {
		t.Fatalf("%d pieces", len(v))
	}
	for id, want := range map[int]string{
		0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 5: "[multimodal]", 6: "<unused0>", 104: "<unused98>",
		105: "<start_of_turn>", 106: "<end_of_turn>", 107: "\n", 108: "\n\n", 137: strings.Repeat("\n", 31),
		138: "▁▁", 167: strings.Repeat("▁", 31), 168: "<table>", 237: "</footer>", 238: "<0x00>", 493: "<0xFF>",
		236743: "▁", 255968: "\t", 255998: strings.Repeat("\t", 31), 255999: "<start_of_image>",
		256000: "<end_of_image>", 256001: "<unused99>", 262143: "<unused6241>",
	} {
		if v[id].text != want {
			t.Errorf("piece %d is %q, want %q", id, v[id].text, want)
		}
	}
	added := 0
	addedTokens(v, func(int, string) { added++ })
	if added != 6415 { // as many as the published tokenizer_config.json lists
		t.Errorf("%d added tokens", added)
	}
}

// Every way to cut a piece in two known ones is a merge, as the converter of the tokenizers library has it, and there
// are as many as Gemma's. Both parts come before the whole, or it could never be reached.
func TestMerges(t *testing.T) {
	if raceEnabled {
		t.Skip("takes seconds with the race detector and starts no goroutine; TestSums holds the bytes")
	}
	v := pieces()
	ids := make(map[string]int, len(v))
	for id, p := range v {
		if other, ok := ids[p.text]; ok || p.text == "" || !utf8.ValidString(p.text) {
			t.Fatalf("piece %d is %q, like %d", id, p.text, other)
		}
		ids[p.text] = id
	}
	total := 0
	for id, p := range v {
		total += bits.OnesCount32(p.cuts)
		if p.kind == octet {
			continue
		}
		char := -1
		for offset := range p.text {
			char++
			left, known := ids[p.text[:offset]]
			right, also := ids[p.text[offset:]]
			cut := char < 32 && p.cuts>>char&1 == 1
			if (known && also) != cut {
				t.Fatalf("piece %q: cut at character %d: %t, pieces known: %t %t", p.text, char, cut, known, also)
			}
			if cut && p.kind == normal && max(joined(v, left), joined(v, right)) >= id {
				t.Fatalf("piece %q (%d) comes before its parts %d and %d", p.text, id, left, right)
			}
		}
	}
	if total != 514906 {
		t.Errorf("%d merges", total)
	}
}

// joined is the id that says when a piece can be there: single characters are from the beginning.
func joined(v []piece, id int) int {
	if utf8.RuneCountInString(v[id].text) == 1 {
		return 0
	}
	return id
}

func TestTokenizerJSON(t *testing.T) {
	if raceEnabled {
		t.Skip("takes seconds with the race detector and starts no goroutine; TestSums holds the bytes")
	}
	b := content(t, repo(t, "1b", 0), "tokenizer.json")
	var file struct {
		Added []struct {
			ID      int
			Content string
			Special bool
		} `json:"added_tokens"`
		Model struct {
			Type         string
			ByteFallback bool `json:"byte_fallback"`
			Vocab        map[string]int
			Merges       [][2]string
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Added) != 6415 || file.Added[len(file.Added)-1].ID != 262144 || file.Added[2].Content != "<bos>" || !file.Added[2].Special {
		t.Errorf("%d added tokens, the last %+v", len(file.Added), file.Added[len(file.Added)-1])
	}
	m := file.Model
	if m.Type != "BPE" || !m.ByteFallback || len(m.Vocab) != 262144 || len(m.Merges) != 514906 {
		t.Errorf("%s with %d pieces and %d merges", m.Type, len(m.Vocab), len(m.Merges))
	}
	for _, pair := range m.Merges {
		if _, ok := m.Vocab[pair[0]+pair[1]]; !ok || pair[0] == "" || pair[1] == "" {
			t.Fatalf("merge of %q makes no piece", pair)
		}
	}
}

// fields splits a protobuf message.
func fields(t *testing.T, b []byte, f func(field uint64, number uint64, bytes []byte)) {
	t.Helper()
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		b = b[n:]
		switch tag & 7 {
		case 0:
			value, n := binary.Uvarint(b)
			f(tag>>3, value, nil)
			b = b[n:]
		case 2:
			length, n := binary.Uvarint(b)
			f(tag>>3, 0, b[n:][:length])
			b = b[n:][length:]
		case 5:
			f(tag>>3, uint64(binary.LittleEndian.Uint32(b)), nil)
			b = b[4:]
		default:
			t.Fatalf("tag %d", tag)
		}
	}
}

func TestTokenizerModel(t *testing.T) {
	v := pieces()
	id, lowest, trained, normalized := 0, float32(0), false, false
	fields(t, content(t, repo(t, "4b", 0), "tokenizer.model"), func(field, _ uint64, b []byte) {
		switch field {
		case 1:
			text, score, kind := "", float32(1), uint64(1)
			fields(t, b, func(field, number uint64, b []byte) {
				switch field {
				case 1:
					text = string(b)
				case 2:
					score = math.Float32frombits(uint32(number))
				case 3:
					kind = number
				}
			})
			if text != v[id].text || kind != sentencepieceType(v[id].kind) {
				t.Fatalf("piece %d is %q of type %d", id, text, kind)
			}
			if kind == 1 {
				if score >= lowest {
					t.Fatalf("piece %d has the score %f, another before it %f", id, score, lowest)
				}
				lowest = score
			}
			id++
		case 2:
			trained = bytes.Contains(b, []byte("<bos>"))
		case 3:
			normalized = bytes.Contains(b, []byte("identity"))
		}
	})
	if id != vocabulary || !trained || !normalized {
		t.Errorf("%d pieces, trainer %t, normalizer %t", id, trained, normalized)
	}
}

func TestTokenizerConfig(t *testing.T) {
	for size, within := range map[string]bool{"270m": false, "1b": true, "27b": true} {
		var c struct {
			Added map[string]struct {
				Content string
				Special bool
			} `json:"added_tokens_decoder"`
			Template string `json:"chat_template"`
		}
		r := repo(t, size, 0)
		if err := json.Unmarshal(content(t, r, "tokenizer_config.json"), &c); err != nil {
			t.Fatal(err)
		}
		if len(c.Added) != 6415 || c.Added["106"].Content != "<end_of_turn>" || !c.Added["106"].Special || c.Added["107"].Special {
			t.Errorf("%s: %d added tokens, 106 is %+v", size, len(c.Added), c.Added["106"])
		}
		if (c.Template != "") != within {
			t.Errorf("%s: template within: %t", size, c.Template != "")
		}
	}
}
