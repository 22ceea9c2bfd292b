package replay

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/headstart-serving/headstart/manifest"
)

// names lists the model's regular files, slash-separated, in the order in which the directories give them.
func (r *reader) names(ctx context.Context) ([]string, error) {
	var all []string
	var walk func(dir string) error
	walk = func(dir string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		d, err := os.Open(r.at(dir))
		if err != nil {
			return err
		}
		defer d.Close()
		entries, err := d.ReadDir(-1) // not sorted, unlike os.ReadDir
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := e.Name()
			if dir != "." {
				path = dir + "/" + path
			}
			info, err := os.Stat(r.at(path)) // follows links: a Hub cache is made of them
			switch {
			case err != nil:
				return err
			case e.IsDir() && path == private:
			case e.IsDir():
				if err := walk(path); err != nil {
					return err
				}
			case info.Mode().IsRegular():
				all = append(all, path)
			}
		}
		return nil
	}
	return all, walk(".")
}

// private is where `headstart fetch` keeps its notes beside the files; it is no part of the model.
const private = ".headstart"

func (r *reader) at(path string) string { return filepath.Join(r.cfg.Dir, filepath.FromSlash(path)) }

// open opens a file and returns its size.
func (r *reader) open(path string) (*os.File, int64, error) {
	f, err := os.Open(r.at(path))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// whole reads a file to its end as a Python program does, piece by piece, and returns its size.
func (r *reader) whole(ctx context.Context, path string, each func([]byte)) (int64, error) {
	f, size, err := r.open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := f.Read(r.buf)
		each(r.buf[:k])
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	if n != size {
		return n, &manifest.MismatchError{Path: path, Size: n, Sum: "size", Want: fmt.Sprint(size), Got: fmt.Sprint(n)}
	}
	return n, nil
}
