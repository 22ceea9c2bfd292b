package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// load reads the entry that an earlier process left in dir. An error says why it cannot be served.
func load(dir, dest string, md medium) (*Entry, error) {
	raw, err := readManifest(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, err
	}
	return newEntry(dir, dest, m, raw, md), nil
}

func readManifest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, manifest.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return raw, nil
}

// resume takes over what an earlier process recorded: where each file is and which chunks of it are
// there.
//
// A file of a sealed entry counts as unchanged if its size and its time of change (mtime) are as they
// were when it was sealed, and nothing of it, nor its mode or owner, was changed (ctime) after that was
// recorded: who writes to it and sets its mtime back is found too. What no time tells, a disk that
// returns other bytes, or writes to the disk itself, is for who reads the files and compares: verify.
func (e *Entry) resume() error {
	stats := make([]fs.FileInfo, len(e.files))
	for i := range e.files {
		st, err := e.find(i)
		if err != nil {
			return err
		}
		stats[i] = st
	}
	recorded := changed(filepath.Join(e.dir, "chunks"))
	head, chunks, err := e.restore()
	if err != nil {
		return err
	}
	e.head.stamp, e.head.durable = head.stamp, head.durable
	sealed := !head.stamp.IsZero()
	trusted := head.boot == e.boot && e.boot != "" || sealed && head.durable
	for i := range e.files {
		unchanged := stats[i] != nil && (!sealed || stats[i].ModTime().Equal(head.stamp) && !changed(e.path(i)).After(recorded))
		e.take(i, chunks, stats[i] != nil, trusted && unchanged)
		sealed = sealed && unchanged
	}
	if sealed && trusted && e.Filled() {
		e.sealed.Store(true)
		return nil
	}
	if err := e.reopen(chunks); err != nil || e.dest == "" {
		return err
	}
	return e.makeFiles(func(file int) bool { return stats[file] != nil })
}

// changed returns when a file or its inode was changed last, zero if that is not known.
func changed(path string) time.Time {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return time.Time{}
	}
	return time.Unix(st.Ctim.Unix())
}

// find looks for a file's bytes: below data, else, if the entry's files are moved, in their place.
// It returns nil if the file is in neither place and may be made again.
func (e *Entry) find(i int) (fs.FileInfo, error) {
	mf := &e.m.Files[i]
	st, err := os.Lstat(e.path(i))
	if errors.Is(err, fs.ErrNotExist) && e.dest != "" {
		e.files[i].placed = true
		if st, err = os.Lstat(e.path(i)); errors.Is(err, fs.ErrNotExist) {
			e.files[i].placed = false
			return nil, nil
		}
	}
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", mf.Path)
	case st.Size() != mf.Size && e.files[i].placed:
		return nil, errChanged(e.path(i))
	case st.Size() != mf.Size:
		return nil, errSize(mf, st.Size())
	}
	return st, nil
}

// restore reads the record of chunks. Without a usable one, every chunk is suspect.
func (e *Entry) restore() (header, []byte, error) {
	f, err := os.OpenFile(filepath.Join(e.dir, "chunks"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return header{}, nil, err
	}
	defer f.Close()
	head, chunks, err := readState(f, e.sum, len(e.chunks))
	if errors.Is(err, errState) {
		chunks = make([]byte, len(e.chunks))
		for i := range chunks {
			chunks[i] = suspect
		}
		return header{}, chunks, nil
	}
	return head, chunks, err
}

// take sets the state of a file's chunks in memory, and in chunks to what shall be recorded.
func (e *Entry) take(file int, chunks []byte, there, trusted bool) {
	for c := range e.m.Files[file].Chunks {
		b := &chunks[e.first[file]+c]
		switch {
		case !there || *b == absent:
			*b = absent
		case *b == verified && trusted:
			e.count(file, c)
			if e.left[file].Add(-1) == 0 {
				e.open.Add(-1)
			}
		default:
			*b = suspect
			e.chunks[e.first[file]+c].Store(suspect)
		}
	}
}

// reopen makes an entry that is not, or no longer, sealed ready for receiving.
func (e *Entry) reopen(chunks []byte) error {
	if err := e.record(chunks); err != nil {
		return err
	}
	root, err := os.OpenRoot(e.base())
	if err != nil {
		return err
	}
	defer root.Close()
	if err := e.chmodDirs(root, 0o755); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for i := range e.files {
		if e.FileComplete(i) || e.files[i].placed {
			continue
		}
		if err := root.Chmod(e.below(e.path(i)), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// record writes the state of all chunks before the header that names this boot: until then the old
// header makes every chunk suspect.
func (e *Entry) record(chunks []byte) error {
	f, err := os.OpenFile(filepath.Join(e.dir, "chunks"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(chunks, headerSize); err != nil {
		return err
	}
	e.head = header{boot: e.boot, sum: e.sum}
	_, err = f.WriteAt(e.head.marshal(), 0)
	return err
}
