package stager

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
)

// adoptAll takes over the files that are in the bucket already.
func (t *transfer) adoptAll(ctx context.Context, files []RemoteFile, jobs []*job) error {
	done := maps.Clone(t.copied)
	for _, j := range jobs {
		done[j.Path] = true
	}
	recorded := make(map[string]bool, len(t.left))
	for _, o := range t.left {
		recorded[o.Key] = true
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, f := range files {
		if done[f.Path] {
			continue
		}
		t.adopted = true
		group.Go(func() error {
			o := t.there[t.model.Object(f.Path)]
			file, err := t.adopt(ctx, f, o, recorded[recordOf(t.model, f.Path)])
			if err != nil {
				return err
			}
			t.files[i] = file
			t.meter.took(f.Path, f.Size, f.Size)
			t.meter.file(file, reused)
			return nil
		})
	}
	return group.Wait()
}

// adopt returns what the manifest says of an object that is there. Its sums come from its record,
// or from the manifest, where there is one that fits the object, else the object is read.
func (t *transfer) adopt(ctx context.Context, f RemoteFile, o Object, recorded bool) (manifest.File, error) {
	if o.Size >= 0 && o.Size != f.Size {
		return manifest.File{}, t.occupied(f, fmt.Sprintf("%d bytes instead of %d", o.Size, f.Size))
	}
	if t.known != nil && o.Summed {
		if known := t.known.File(f.Path); known.CRC32C == o.CRC32C {
			return *known, nil
		}
	}
	if same, ok := t.unchanged[f.Path]; ok && o.Summed && same.file.CRC32C == o.CRC32C {
		return same.file, nil // copied by a run that was killed
	}
	if recorded && o.Summed {
		data, _, err := t.Store.Get(ctx, recordOf(t.model, f.Path), manifest.MaxSize)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return manifest.File{}, err
		}
		if err == nil {
			file, err := parseRecord(data, f, t.ChunkSize)
			if err == nil && file.CRC32C == o.CRC32C {
				return file, nil
			}
			t.Log.Warn("reading an object whose record does not fit it", "path", f.Path, "err", err)
		}
	}
	return t.readBack(ctx, f)
}

// readBack hashes an object in the bucket.
func (t *transfer) readBack(ctx context.Context, f RemoteFile) (manifest.File, error) {
	r, err := t.Store.Open(ctx, t.model.Object(f.Path), 0, -1)
	if err != nil {
		return manifest.File{}, err
	}
	defer r.Close()
	file := manifest.File{Path: f.Path, Size: f.Size}
	s := newSums(f)
	w := io.MultiWriter(s, &chunkSums{size: t.ChunkSize, sums: &file.Chunks})
	n, err := io.CopyBuffer(w, io.LimitReader(r, f.Size+1), make([]byte, 256<<10))
	if err != nil {
		return manifest.File{}, fmt.Errorf("reading %s in the bucket: %w", f.Path, err)
	}
	if n != f.Size {
		return manifest.File{}, t.occupied(f, fmt.Sprintf("not %d bytes", f.Size))
	}
	if err := s.check(f); err != nil {
		return manifest.File{}, t.occupied(f, err.Error())
	}
	file.SHA256, file.CRC32C = s.digest(), combine(file.Chunks, f.Size, t.ChunkSize)
	return file, nil
}

func (t *transfer) occupied(f RemoteFile, why string) error {
	return Fail(fs.ErrExist, "%s has other content (%s) and is left untouched: remove the object, or stage below another prefix", t.model.Object(f.Path), why)
}

// confirm looks once more, after the commit, at what this run did not store itself. Who removes what
// old runs left looks for a manifest before the removal and after it: so one of the two sees that both were
// at work.
func (t *transfer) confirm(ctx context.Context, m *manifest.Manifest) error {
	if !t.adopted {
		return nil
	}
	objects, err := list(ctx, t.Store, t.model.Object(""))
	if err != nil {
		return fmt.Errorf("the manifest is written, but not compared with the objects: %w", err)
	}
	there := make(map[string]Object, len(objects))
	for _, o := range objects {
		there[o.Key] = o
	}
	if lacking := lacks(m, there); lacking != "" {
		return Fail(syscall.EBUSY, "%s was removed by another process while the model was being staged: run again", lacking)
	}
	return nil
}

// keep writes a file's record.
func (t *transfer) keep(ctx context.Context, f manifest.File) error {
	key, data := recordOf(t.model, f.Path), marshalRecord(f, t.ChunkSize)
	err := t.Store.Put(ctx, key, 0, data)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	// The record of a run that divided the file in another way.
	_, version, err := t.Store.Get(ctx, key, manifest.MaxSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = t.Store.Put(ctx, key, version, data)
	if IsKept(err) {
		return nil // a bucket that lets nothing be replaced: a run that needs the record reads the object
	}
	return err
}

// chunkSums sums what is written to it chunk by chunk.
type chunkSums struct {
	size int64
	at   int64 // bytes in the last chunk
	sums *[]uint32
}

func (c *chunkSums) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if c.at == 0 || c.at == c.size {
			*c.sums, c.at = append(*c.sums, 0), 0
		}
		n := min(int64(len(p)), c.size-c.at)
		last := &(*c.sums)[len(*c.sums)-1]
		*last = crc32.Update(*last, manifest.Castagnoli, p[:n])
		c.at += n
		p = p[n:]
	}
	return written, nil
}
