package gemma

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"
)

// The ids of Gemma 3's vocabulary that others rely on, and where its groups of pieces begin.
const (
	firstNewlines = 107    // "\n" … 31 of them
	firstSpaces   = 138    // "▁▁" … 30 of them; Sentencepiece writes a space as "▁"
	firstTag      = 168    // "<table>" …
	firstByte     = 238    // "<0x00>" … "<0xFF>"
	firstWord     = 494    // pieces of several characters
	firstChar     = 236743 // "▁", then other single characters
	firstTabs     = 255968 // "\t" … 31 of them
	longestRun    = 31     // of newlines, spaces or tabs
	imageToken    = vocabulary
	merges        = 514906 // ways to put a piece together from two others
)

// A piece is an entry of the vocabulary.
type piece struct {
	text string
	// cuts has bit i set when the text before character i and the text from there on are both pieces.
	cuts uint32
	kind kind
}

type kind uint8

const (
	normal  kind = iota
	control      // a marker that text cannot produce
	unknown
	markup // found in text before anything is merged
	octet  // a byte of a character that the vocabulary lacks
)

// buildVocabulary returns the pieces by id: a byte-fallback BPE vocabulary with Gemma's size, special tokens and
// layout. Its words are made up: runs of consonant-vowel-consonant syllables that look like "▁torlimba".
func buildVocabulary() []piece {
	v := frame()
	copy(v[firstWord:], words(firstChar-firstWord))
	copy(v[firstChar:], characters(firstTabs-firstChar))
	return v
}

// frame returns the pieces by id without words and characters, which are the ones that take long to make.
func frame() []piece {
	v := make([]piece, vocabulary)
	for id, text := range []string{"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"} {
		v[id] = piece{text: text, kind: markup}
	}
	v[0].kind, v[1].kind, v[2].kind, v[3].kind = control, control, control, unknown
	for i := range 99 {
		v[6+i] = unused(i)
	}
	v[105], v[106] = piece{text: "<start_of_turn>", kind: markup}, piece{text: "<end_of_turn>", kind: markup}
	for n := range longestRun {
		v[firstNewlines+n] = run("\n", n+1)
		v[firstTabs+n] = run("\t", n+1)
		if n > 0 { // the single space is among the characters
			v[firstSpaces+n-1] = run("▁", n+1)
		}
	}
	for i, tag := range tags() {
		v[firstTag+i] = piece{text: tag, kind: markup}
	}
	for b := range 256 {
		v[firstByte+b] = piece{text: fmt.Sprintf("<0x%02X>", b), kind: octet}
	}
	v[255999], v[256000] = piece{text: "<start_of_image>", kind: markup}, piece{text: "<end_of_image>", kind: markup}
	for id := 256001; id < vocabulary; id++ {
		v[id] = unused(99 + id - 256001)
	}
	return v
}

func unused(i int) piece { return piece{text: fmt.Sprintf("<unused%d>", i), kind: markup} }

// run is n times the same character: it can be cut anywhere.
func run(char string, n int) piece {
	return piece{text: strings.Repeat(char, n), cuts: 1<<n - 2, kind: markup}
}

// tags are the HTML tags that Gemma's tokenizer knows as one piece.
func tags() (list []string) {
	for _, group := range []string{
		"table caption thead tbody tfoot tr th td", "h1 h2 h3 h4 h5 h6 blockquote",
		"strong em b i u s sub sup code", "a html body img span bbox ul li div iframe footer",
	} {
		for _, slash := range []string{"", "/"} {
			for _, name := range strings.Fields(group) {
				list = append(list, "<"+slash+name+">")
			}
		}
	}
	return list
}

// characters returns n single characters: the space, ASCII, Latin, Greek, Cyrillic, then as many Chinese ones as it takes.
func characters(n int) []piece {
	list := []piece{{text: "▁"}}
	for _, r := range [][2]rune{{'!', '~'}, {0xA1, 0x17F}, {0x391, 0x3C9}, {0x410, 0x44F}, {0x4E00, 0x9FFF}} {
		for c := r[0]; c <= r[1] && len(list) < n; c++ {
			if c != 0x3A2 && c != 0xAD { // not assigned; soft hyphen
				list = append(list, piece{text: string(c)})
			}
		}
	}
	return list
}

// A lexicon collects pieces of several characters. It keeps to one rule: before a piece of several syllables comes
// every shorter stretch of its syllables, so that the number of its cuts is known when it is added.
type lexicon struct {
	list          []piece
	known         map[string]bool
	left, surplus int // pieces to add; cuts that they shall have beyond one each
	syllables     []string
	random        uint64
}

// words returns n pieces which have, with the runs of white space, as many cuts in all as Gemma's have merges.
func words(n int) []piece {
	const runs = 3 * longestRun * (longestRun - 1) / 2
	l := &lexicon{known: make(map[string]bool, n), left: n, surplus: merges - runs - n}
	l.letters()
	l.acronyms("", 26, 3)
	l.acronyms("", 12, 4)
	for l.surplus > 0 {
		if l.left < 2 {
			panic("gemma: the words do not add up")
		}
		l.word(4+l.draw(2), l.draw(5) > 0)
	}
	for l.left > 0 {
		l.word(2, false)
	}
	// Short ones first: a merge must come after those that make its parts.
	slices.SortStableFunc(l.list, func(a, b piece) int {
		return utf8.RuneCountInString(a.text) - utf8.RuneCountInString(b.text)
	})
	return l.list
}

// letters adds pairs of letters and syllables, and collects the syllables.
func (l *lexicon) letters() {
	const consonants, vowels = "bcdfghjklmnpqrstvwxyz", "aeiou"
	for _, c := range strings.Split(consonants, "") {
		l.add("▁"+c, 1<<1)
		for _, v := range strings.Split(vowels, "") {
			l.add(c+v, 1<<1)
			l.add(v+c, 1<<1)
			for _, d := range strings.Split(consonants, "") {
				l.add(c+v+d, 1<<1|1<<2)
				l.add("▁"+c+v+d, 1<<1|1<<2)
				for _, w := range strings.Split(vowels, "") {
					l.add(c+v+d+w, 1<<2|1<<3)
				}
				l.syllables = append(l.syllables, c+v+d)
			}
		}
	}
}

// acronyms adds prefix followed by up to length of the n most frequent letters, where that is longer than one letter and
// not known yet. They bring many cuts for few bytes, as the scripts do that Gemma's vocabulary has besides Latin.
func (l *lexicon) acronyms(prefix string, n, length int) {
	if len(prefix) > 1 && !l.known[prefix] {
		l.add(prefix, 1<<len(prefix)-2)
	}
	if length == 0 {
		return
	}
	for _, c := range strings.Split("ETAOINSHRDLCUMWFGYPBVKJXQZ"[:n], "") {
		l.acronyms(prefix+c, n, length-1)
	}
}

// word makes up a word of at most n syllables and adds its stretches, those from its beginning also with a space
// before them when space is set. It takes fewer syllables when the surplus would not last.
func (l *lexicon) word(n int, space bool) {
	parts := make([]string, n)
	for i := range parts {
		// Two draws, the smaller: some syllables are more frequent than others.
		parts[i] = l.syllables[min(l.draw(len(l.syllables)), l.draw(len(l.syllables)))]
	}
	for ; n > 1; n-- {
		fresh := l.stretches(parts[:n], space)
		surplus := -len(fresh)
		for _, p := range fresh {
			surplus += bits.OnesCount32(p.cuts)
		}
		if len(fresh) <= l.left && surplus <= l.surplus {
			for _, p := range fresh {
				l.add(p.text, p.cuts)
			}
			return
		}
	}
}

// stretches lists what of a word's stretches is not known yet.
func (l *lexicon) stretches(parts []string, space bool) (fresh []piece) {
	for n := 2; n <= len(parts); n++ {
		for i := range len(parts) - n + 1 {
			text := strings.Join(parts[i:i+n], "")
			var cuts uint32
			for k := 1; k < n; k++ {
				cuts |= 1 << (3 * k)
			}
			fresh = append(fresh, piece{text: text, cuts: cuts})
			if space && i == 0 {
				fresh = append(fresh, piece{text: "▁" + text, cuts: cuts<<1 | 1<<1})
			}
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(fresh, func(p piece) bool {
		again := l.known[p.text] || seen[p.text]
		seen[p.text] = true
		return again
	})
}

func (l *lexicon) add(text string, cuts uint32) {
	l.known[text] = true
	l.list = append(l.list, piece{text: text, cuts: cuts})
	l.left--
	l.surplus -= bits.OnesCount32(cuts) - 1
}

// draw returns a number below n.
func (l *lexicon) draw(n int) int {
	l.random++
	high, _ := bits.Mul64(mix(l.random), uint64(n))
	return int(high)
}
