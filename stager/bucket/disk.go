package bucket

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// temporary is the prefix of files that are not yet renamed into their place.
const temporary = ".tmp-"

// sessionLife is how long a resumable upload can be continued.
const sessionLife = 7 * 24 * time.Hour

// recordName returns the file name of an object's record.
func recordName(object string) string {
	sum := sha256.Sum256([]byte(object))
	return hex.EncodeToString(sum[:]) + ".json"
}

// openBucket reads a bucket's folder, and removes what a killed server left behind there.
func openBucket(dir, name string) (*bucket, error) {
	b := &bucket{Name: name, dir: dir, objects: map[string]*object{}, older: map[string][]*object{}, sessions: map[string]*session{}, refs: map[string]int{}}
	for _, sub := range []string{"objects", "blobs", "uploads"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o777); err != nil {
			return nil, err
		}
	}
	if err := b.loadAttributes(); err != nil {
		return nil, err
	}
	if err := b.loadObjects(); err != nil {
		return nil, err
	}
	if err := b.loadSessions(); err != nil {
		return nil, err
	}
	return b, b.sweepBlobs()
}

func (b *bucket) loadAttributes() error {
	err := readJSON(filepath.Join(b.dir, "bucket.json"), &b.bucketAttributes)
	if errors.Is(err, fs.ErrNotExist) {
		b.bucketAttributes = newBucketAttributes(time.Now())
		return writeRecord(filepath.Join(b.dir, "bucket.json"), b.bucketAttributes)
	}
	return err
}

func (b *bucket) loadObjects() error {
	err := b.eachRecord("objects", func(path string) error {
		o := new(object)
		if err := readJSON(path, o); err != nil {
			return err
		}
		if want := b.recordPath(o.Name); !o.live() {
			if want = b.olderPath(o); want != path {
				return fmt.Errorf("%s is the record of another generation: remove it", path)
			}
		} else if want != path {
			return fmt.Errorf("%s is the record of another name: remove it", path)
		}
		for _, p := range o.Pieces {
			if st, err := os.Stat(b.blobPath(p.Blob)); err != nil || st.Size() < p.Size && !p.Dropped {
				return os.Remove(path) // its bytes went in a power cut
			}
		}
		if !o.live() {
			b.older[o.Name] = append(b.older[o.Name], o)
			b.hold(o.Pieces)
			return nil
		}
		b.insert(o)
		return nil
	})
	if err != nil {
		return err
	}
	return b.loadOlder()
}

// loadOlder drops the records of generations that are live still: a killed server was about to replace them.
func (b *bucket) loadOlder() error {
	for name, list := range b.older {
		for _, o := range slices.Clone(list) {
			if live := b.objects[name]; live == nil || live.Generation != o.Generation {
				continue
			}
			if err := b.forget(o); err != nil {
				return err
			}
			b.release(o.Pieces)
		}
	}
	b.expire(time.Now())
	return nil
}

func (b *bucket) loadSessions() error {
	finished := map[string]*object{}
	for _, o := range b.objects {
		if o.Upload != "" {
			finished[o.Upload] = o
		}
	}
	return b.eachRecord("uploads", func(path string) error {
		u := &session{bucket: b, turn: make(chan struct{}, 1)}
		if err := readJSON(path, u); err != nil {
			return err
		}
		if time.Since(u.Created) > sessionLife {
			return os.Remove(path)
		}
		if o := finished[u.ID]; o != nil && u.Finished == nil {
			u.Finished = o // the server was killed between the object's record and the upload's
		}
		b.sessions[u.ID] = u
		if u.Finished != nil {
			return nil
		}
		b.refs[u.Blob]++
		return u.recover()
	})
}

// eachRecord calls fn with the path of every record in a folder.
func (b *bucket) eachRecord(folder string, fn func(path string) error) error {
	entries, err := os.ReadDir(filepath.Join(b.dir, folder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(b.dir, folder, e.Name())
		if strings.HasPrefix(e.Name(), temporary) {
			err = os.Remove(path)
		} else {
			err = fn(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepBlobs removes the blobs that no record names.
func (b *bucket) sweepBlobs() error {
	entries, err := os.ReadDir(filepath.Join(b.dir, "blobs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if b.refs[e.Name()] == 0 {
			if err := os.Remove(b.blobPath(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// newest returns the greatest generation in the bucket.
func (b *bucket) newest() int64 {
	var g int64
	for _, o := range b.objects {
		g = max(g, o.Generation)
	}
	for _, list := range b.older {
		for _, o := range list {
			g = max(g, o.Generation)
		}
	}
	return g
}

func (b *bucket) blobPath(id string) string { return filepath.Join(b.dir, "blobs", filepath.Base(id)) }

func (b *bucket) recordPath(object string) string {
	return filepath.Join(b.dir, "objects", recordName(object))
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s is damaged (%w): remove it", path, err)
	}
	return nil
}

// writeRecord puts v in place of the file at path, whole or not at all.
func writeRecord(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(path), temporary+filepath.Base(path))
	if err := os.WriteFile(temp, data, 0o666); err != nil {
		os.Remove(temp)
		return err
	}
	return os.Rename(temp, path)
}

// insert puts o into the index in place of the object that had its name.
func (b *bucket) insert(o *object) {
	if old := b.objects[o.Name]; old == nil {
		i, _ := slices.BinarySearch(b.names, o.Name)
		b.names = slices.Insert(b.names, i, o.Name)
	}
	b.objects[o.Name] = o
	for _, p := range o.Pieces {
		b.refs[p.Blob]++
	}
}
