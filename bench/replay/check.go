package replay

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"

	"github.com/headstart-serving/headstart/manifest"
)

// check compares the sha256 of every file, shards by the mappings that weights copied from. It looks
// at all of them and returns the first error.
func (r *reader) check(ctx context.Context) (int64, error) {
	found, err := r.names(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(r.cfg.Want)) {
		if !slices.Contains(found, path) {
			note(fmt.Errorf("%s: %w", path, fs.ErrNotExist))
			continue
		}
		size, sum, err := r.sum(ctx, path)
		n += size
		if err != nil {
			return n, err
		}
		want := r.cfg.Want[path]
		r.result.Files = append(r.result.Files, File{Path: path, Size: size, SHA256: sum.String(), OK: sum == want})
		if sum != want {
			note(&manifest.MismatchError{Path: path, Size: size, Sum: "sha256", Want: want.String(), Got: sum.String()})
		}
	}
	for _, path := range found {
		if _, ok := r.cfg.Want[path]; !ok {
			note(fmt.Errorf("%w file set: %s is not one of the model's files", manifest.ErrInvalid, path))
		}
	}
	return n, first
}

func (r *reader) sum(ctx context.Context, path string) (int64, manifest.Digest, error) {
	h := sha256.New()
	var size int64
	var err error
	if m := r.kept[path]; m != nil {
		size = int64(len(m.bytes))
		err = m.walk(ctx, r.buf, 0, size, func(b []byte, _ int64) { h.Write(b) })
	} else {
		size, err = r.whole(ctx, path, func(b []byte) { h.Write(b) })
	}
	return size, manifest.Digest(h.Sum(nil)), err
}

var sumLine = regexp.MustCompile(`^([0-9a-f]{64}) [ *](.+)$`)

// maxSums bounds a list of sums: a hundred thousand files with long names.
const maxSums = 16 << 20

// ParseSums reads what sha256sum writes: a line of 64 hex digits, two spaces and a path for each file.
func ParseSums(r io.Reader) (map[string]manifest.Digest, error) {
	sums := map[string]manifest.Digest{}
	s := bufio.NewScanner(io.LimitReader(r, maxSums+1))
	n := 0
	for line := 1; s.Scan(); line++ {
		if n += len(s.Bytes()) + 1; n > maxSums {
			return nil, fmt.Errorf("%w list of sums: more than %d bytes", manifest.ErrInvalid, maxSums)
		}
		m := sumLine.FindStringSubmatch(s.Text())
		if m == nil {
			return nil, fmt.Errorf("%w list of sums: line %d is not the sha256 and the path of a file", manifest.ErrInvalid, line)
		}
		if _, twice := sums[m[2]]; twice {
			return nil, fmt.Errorf("%w list of sums: line %d names %.100q again", manifest.ErrInvalid, line, m[2])
		}
		d, err := manifest.ParseDigest(m[1])
		if err != nil {
			return nil, fmt.Errorf("%w list of sums: line %d: %w", manifest.ErrInvalid, line, err)
		}
		sums[m[2]] = d
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("reading a list of sums: %w", err)
	}
	return sums, nil
}

// WriteSums writes what [ParseSums] reads.
func WriteSums(w io.Writer, sums map[string]manifest.Digest) error {
	for _, path := range slices.Sorted(maps.Keys(sums)) {
		if _, err := fmt.Fprintf(w, "%s  %s\n", sums[path], path); err != nil {
			return err
		}
	}
	return nil
}
