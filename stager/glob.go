package stager

import (
	"fmt"
	"regexp"
	"strings"
)

// glob is a pattern of paths with the meaning it has in the Hub's own client (allow_patterns,
// ignore_patterns), which is that of Python's fnmatch: * stands for any characters, also "/", ? for one,
// [abc], [a-z] and [!abc] for one of a set; upper and lower case differ; a pattern that ends in "/" means
// all that is below. Nothing escapes: a literal * is [*].
// https://docs.python.org/3/library/fnmatch.html, filter_repo_objects in huggingface_hub
type glob struct {
	text string
	re   *regexp.Regexp
}

func parseGlobs(patterns []string) ([]glob, error) {
	globs := make([]glob, len(patterns))
	for i, p := range patterns {
		if p == "" {
			return nil, Fail(ErrSelection, "a pattern is empty: give one such as '*.gguf' or 'original/*'")
		}
		re, err := regexp.Compile(translate(p))
		if err != nil {
			return nil, Fail(ErrSelection, "pattern %.100q: %v", p, err)
		}
		globs[i] = glob{p, re}
	}
	return globs, nil
}

// translate makes a regular expression of a pattern.
func translate(pattern string) string {
	if strings.HasSuffix(pattern, "/") {
		pattern += "*"
	}
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for p := []rune(pattern); len(p) > 0; {
		n := 1
		switch p[0] {
		case '*':
			b.WriteString(".*")
		case '?':
			b.WriteString(".")
		case '[':
			var set string
			set, n = translateSet(p)
			b.WriteString(set)
		default:
			b.WriteString(regexp.QuoteMeta(string(p[0])))
		}
		p = p[n:]
	}
	b.WriteString(`\z`)
	return b.String()
}

// translateSet translates the set that p begins with, and returns how many runes it has. A "]" that comes
// first belongs to the set; a "[" without an end stands for itself.
func translateSet(p []rune) (string, int) {
	begin := 1
	not := len(p) > 1 && p[1] == '!'
	if not {
		begin++
	}
	end := begin + 1
	for end < len(p) && p[end] != ']' {
		end++
	}
	if end >= len(p) {
		return `\[`, 1
	}
	ranges := ""
	for s := p[begin:end]; len(s) > 0; {
		lo, hi, n := s[0], s[0], 1
		if len(s) > 2 && s[1] == '-' {
			hi, n = s[2], 3
		}
		if lo <= hi {
			ranges += fmt.Sprintf(`\x{%x}-\x{%x}`, lo, hi)
		}
		s = s[n:]
	}
	switch {
	case ranges == "" && not:
		return ".", end + 1
	case ranges == "": // no character is in it
		return `[^\x00-\x{10FFFF}]`, end + 1
	case not:
		return "[^" + ranges + "]", end + 1
	}
	return "[" + ranges + "]", end + 1
}

// match returns the first pattern that path matches, "" for none.
func match(globs []glob, path string) string {
	for _, g := range globs {
		if g.re.MatchString(path) {
			return g.text
		}
	}
	return ""
}
