// Package reading reads a model's files as a program does that wants all of them, one after the other, and
// sums what it reads. Two things come of it: what a reader of a mount has to pay, and whether it got the
// right bytes.
package reading

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/headstart-serving/headstart/manifest"
)

// Sums are CRC32Cs by the path of a file.
type Sums map[string]uint32

// piece is how much is read at a time, in bytes: as much as is summed while it is hot. The kernel reads
// ahead by its own measure.
const piece = 256 << 10

// Files reads these files below dir in natural order.
func Files(ctx context.Context, dir string, paths []string) (Sums, error) {
	sums, buf := Sums{}, make([]byte, piece)
	paths = slices.Clone(paths)
	slices.SortFunc(paths, manifest.NaturalOrder)
	for _, path := range paths {
		sum, err := file(ctx, filepath.Join(dir, filepath.FromSlash(path)), buf)
		if err != nil {
			return nil, err
		}
		sums[path] = sum
	}
	return sums, nil
}

func file(ctx context.Context, path string, buf []byte) (sum uint32, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := f.Read(buf)
		sum = crc32.Update(sum, manifest.Castagnoli, buf[:n])
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Check compares sums with a model's. The error names the first file that is not as it should be.
func Check(m *manifest.Manifest, sums Sums) error {
	for _, f := range m.Files {
		got, ok := sums[f.Path]
		if !ok {
			return fmt.Errorf("%w file set: %s was not read", manifest.ErrInvalid, f.Path)
		}
		if got != f.CRC32C {
			return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "crc32c", Want: fmt.Sprintf("%08x", f.CRC32C), Got: fmt.Sprintf("%08x", got)}
		}
	}
	return nil
}
