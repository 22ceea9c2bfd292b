package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// Verify reads the files of a model in dir back and compares each chunk's CRC32C and each file's
// sha256 with the manifest. progress is told, from several goroutines, how many more bytes were read;
// it may be nil.
//
// The error joins one *manifest.MismatchError for each file that differs, in the manifest's order,
// with the offset of the first chunk that does. A file that is missing differs.
func Verify(ctx context.Context, dir string, m *manifest.Manifest, progress func(bytes int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("verifying %s: %w", m.Model, err)
	}
	defer root.Close()
	found := make([]error, len(m.Files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i := range m.Files {
		g.Go(func() error {
			err := verifyFile(ctx, root, m, i, progress)
			var mismatch *manifest.MismatchError
			if errors.As(err, &mismatch) {
				found[i] = err
				return nil // the other files are still of interest
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("verifying %s: %w", m.Model, err)
	}
	return errors.Join(found...)
}

func verifyFile(ctx context.Context, root *os.Root, m *manifest.Manifest, i int, progress func(int64)) error {
	f := &m.Files[i]
	name := filepath.FromSlash(f.Path)
	st, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrongSize(f, "none (there is no such file)")
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return wrongSize(f, "none (it is not a file)")
	case st.Size() != f.Size:
		return wrongSize(f, fmt.Sprint(st.Size()))
	}
	file, err := root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	whole := sha256.New()
	buf := make([]byte, piece)
	for c := range m.ChunksOf(i) {
		var sum uint32
		for left := c.Size; left > 0; {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			p := buf[:min(left, piece)]
			if _, err := io.ReadFull(file, p); err != nil {
				return fmt.Errorf("reading %s: %w", f.Path, err)
			}
			sum = crc32.Update(sum, manifest.Castagnoli, p)
			whole.Write(p)
			left -= int64(len(p))
			progress(int64(len(p)))
		}
		if err := m.Check(c, sum); err != nil {
			return err
		}
	}
	if got := manifest.Digest(whole.Sum(nil)); got != f.SHA256 {
		return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "sha256", Want: f.SHA256.String(), Got: got.String()}
	}
	return nil
}

func wrongSize(f *manifest.File, got string) error {
	return &manifest.MismatchError{Path: f.Path, Size: f.Size, Sum: "size", Want: fmt.Sprint(f.Size), Got: got}
}
