package manifest

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxPath    = 768 // bytes; with the model's name in front it stays below Cloud Storage's 1,024
	maxSegment = 255 // bytes; what ext4 and tmpfs allow
)

// ErrInvalid is what every error of this package about a name, a path or a manifest wraps: what came
// from outside does not have the form it must have.
var ErrInvalid = errors.New("invalid")

// invalid marks an error as ErrInvalid without adding to its text.
type invalid struct{ error }

func (e invalid) Unwrap() error        { return e.error }
func (e invalid) Is(target error) bool { return target == ErrInvalid }

func mark(err error) error {
	if err == nil {
		return nil
	}
	return invalid{err}
}

// ValidPath reports whether path can be a file of a model: relative, slash-separated, staying
// below its root on every system, printable, and short enough for an object's name.
func ValidPath(path string) error { return mark(checkPath(path)) }

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path is empty")
	case len(path) > maxPath:
		return fmt.Errorf("the path is %d bytes long, more than %d", len(path), maxPath)
	case !utf8.ValidString(path):
		return errors.New("the path is not UTF-8")
	case strings.HasPrefix(path, "/"):
		return errors.New("the path is absolute")
	case strings.Contains(path, `\`):
		return errors.New("the path has a backslash")
	case strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("the path has a character that does not print")
	}
	for s := range strings.SplitSeq(path, "/") {
		switch {
		case s == "" || s == "." || s == "..":
			return fmt.Errorf("the path has a segment %q", s)
		case len(s) > maxSegment:
			return fmt.Errorf("the path has a segment of %d bytes, more than %d", len(s), maxSegment)
		}
	}
	if first, _, _ := strings.Cut(path, "/"); strings.EqualFold(first+"/", Private) {
		return fmt.Errorf("the path begins with %s, which is headstart's own", Private)
	}
	return nil
}

// ValidPaths reports whether the paths can stand side by side in one directory of any file system:
// each is a ValidPath, no two are equal or differ by case only, and none is a directory of another.
func ValidPaths(paths []string) error { return mark(checkPaths(paths)) }

func checkPaths(paths []string) error {
	files := make(map[string]string, len(paths)) // folded → as it stands
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return fmt.Errorf("%q: %w", clip(p), err)
		}
		key := strings.ToLower(p)
		switch other, ok := files[key]; {
		case ok && other == p:
			return fmt.Errorf("%q: the path stands twice", clip(p))
		case ok:
			return fmt.Errorf("%q: the path differs from %q by case only", clip(p), clip(other))
		}
		files[key] = p
	}
	for _, p := range paths {
		for i := range len(p) {
			if p[i] != '/' {
				continue
			}
			if other, ok := files[strings.ToLower(p[:i])]; ok {
				return fmt.Errorf("%q: %q is a file, not a directory", clip(p), clip(other))
			}
		}
	}
	return nil
}
