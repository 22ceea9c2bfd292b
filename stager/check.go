package stager

import (
	"fmt"
	"path"
	"slices"

	"github.com/headstart-serving/headstart/manifest"
)

// Limits of names in bytes: an object's in Cloud Storage, and a file's in a directory.
// https://cloud.google.com/storage/docs/objects#naming
const (
	maxKey     = 1024
	maxSegment = 255
)

// fitsRef refuses a ref that no object can be named by: before the copying, not after it.
func fitsRef(store Store, repo, ref string) error {
	if ref == "" {
		return nil
	}
	key := manifest.RefKey(repo, ref)
	if n := len(path.Base(key)); n > maxSegment {
		return Fail(manifest.ErrInvalid, "revision %.100q makes a name of %d bytes in the bucket, more than %d: stage its commit instead", ref, n, maxSegment)
	}
	return fitsKey(store, key)
}

// fits refuses files that could not all be named in the bucket, or not by a manifest that readers take.
func fits(store Store, model manifest.Model, files []RemoteFile, chunkSize int64) error {
	m := &manifest.Manifest{Model: model, ChunkSize: chunkSize, Files: make([]manifest.File, len(files))}
	room := int64(manifest.MaxSize / 8) // a sum has 8 digits
	for i, f := range files {
		// The longest key that belongs to a file is its own or that of one of its parts.
		for _, key := range []string{model.Object(f.Path), fmt.Sprintf("%sjoin-%016x-%016x", dirOf(model, f.Path), f.Size, f.Size)} {
			if err := fitsKey(store, key); err != nil {
				return err
			}
		}
		n := manifest.NumChunks(f.Size, chunkSize)
		if room -= n; f.Size < 0 || room < 0 {
			return Fail(manifest.ErrInvalid, "%.100q of %d bytes makes the manifest larger than %d bytes, which readers do not take: %s is too large to stage", f.Path, f.Size, manifest.MaxSize, model.Repo)
		}
		m.Files[i] = manifest.File{Path: f.Path, Size: f.Size, Chunks: make([]uint32, n)}
	}
	_, err := manifest.Marshal(m) // as long as the one to come: sums have their length whatever they are
	return err
}

func fitsKey(store Store, key string) error {
	n := len(key)
	if p, ok := store.(interface{ KeyPrefix() string }); ok {
		n += len(p.KeyPrefix())
	}
	if n > maxKey {
		return Fail(manifest.ErrInvalid, "%s/%.200s is a name of %d bytes, more than the %d that objects have: use a shorter prefix", store, key, n, maxKey)
	}
	return nil
}

// lacks names the first object of a staged model that is missing or has other bytes, "" for none.
func lacks(m *manifest.Manifest, there map[string]Object) string {
	for i := range m.Files {
		f, key := &m.Files[i], m.Model.Object(m.Files[i].Path)
		if o, ok := there[key]; !ok || o.Size != f.Size || o.Summed && o.CRC32C != f.CRC32C {
			return key
		}
	}
	return ""
}

// same reports, with what differs, a manifest that does not describe the files.
func same(m *manifest.Manifest, files []RemoteFile) error {
	differs := func(what string) error {
		return Fail(manifest.ErrInvalid, "objects are missing, and the manifest %s does not describe what the source has (%.200q): remove the manifest and stage again", m.Model.Key(), what)
	}
	for _, f := range files {
		if w := m.File(f.Path); w == nil || w.Size != f.Size || f.SHA256 != nil && w.SHA256 != *f.SHA256 {
			return differs(f.Path)
		}
	}
	if len(files) != len(m.Files) {
		return differs(fmt.Sprintf("%d files instead of %d", len(m.Files), len(files)))
	}
	return nil
}

// identical reports, with what differs, a model that was completed and is not what its manifest says.
func identical(want, got *manifest.Manifest) error {
	for i := range want.Files {
		w, g := &want.Files[i], &got.Files[i] // of the same paths and sizes: see same
		if w.SHA256 != g.SHA256 {
			return &manifest.MismatchError{Path: w.Path, Size: w.Size, Sum: "sha256", Want: w.SHA256.String(), Got: g.SHA256.String()}
		}
		if w.CRC32C != g.CRC32C || !slices.Equal(w.Chunks, g.Chunks) {
			return &manifest.MismatchError{Path: w.Path, Size: w.Size, Sum: "crc32c", Want: fmt.Sprintf("%08x", w.CRC32C), Got: fmt.Sprintf("%08x", g.CRC32C)}
		}
	}
	return nil
}
