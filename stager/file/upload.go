package file

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// upload is a file that is written in parts. Its data and its journal lie below dir. A line of the
// journal is written when its part is on the medium, so what the journal says is true after any crash.
type upload struct {
	store *Store
	key   string
	dir   string
	size  int64
	data  *os.File
	parts []stager.Part

	mu      sync.Mutex
	journal *os.File // its lock is held
	empty   bool     // no part is in the journal, and nothing is lost with it
}

// line is a part in the journal.
type line struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	CRC32C uint32 `json:"crc32c"`
	Note   []byte `json:"note"`
}

// Upload opens a file that is written in parts, and preallocates it: a full disk is an error before the
// first byte.
func (s *Store) Upload(ctx context.Context, key, dir string, size int64) (stager.Upload, error) {
	u := &upload{store: s, key: key, dir: strings.TrimSuffix(dir, "/"), size: size}
	if err := u.open(ctx); err != nil {
		if u.data != nil {
			u.data.Close()
		}
		if u.journal != nil {
			u.journal.Close()
		}
		s.prune(u.dir)
		return nil, s.explain(err)
	}
	return u, nil
}

func (u *upload) open(ctx context.Context) error {
	if err := u.lock(ctx); err != nil {
		return err
	}
	// Looked at under the lock: who held it before may have finished.
	if _, err := u.store.root.Lstat(u.key); err == nil {
		u.remove()
		return stager.Fail(fs.ErrExist, "%s/%s is there", u.store, u.key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := u.store.root.Lstat(u.dir + "/data")
	fresh := errors.Is(err, fs.ErrNotExist)
	if u.data, err = u.store.root.OpenFile(u.dir+"/data", os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return err
	}
	if err := u.allocate(ctx); err != nil {
		if fresh {
			u.remove()
		}
		return fmt.Errorf("reserving %d bytes for %s: %w", u.size, u.key, err)
	}
	return u.recover(ctx)
}

// lock opens the journal and waits until no other process has it.
func (u *upload) lock(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.store.mkdirs(u.dir); err != nil {
			return err
		}
		f, err := u.store.root.OpenFile(u.dir+"/journal", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory was empty, and another process has just removed it
		}
		if err != nil {
			return err
		}
		if err := u.store.lock(ctx, f, u.key); err != nil {
			if info, e := f.Stat(); errors.Is(err, syscall.EOPNOTSUPP) && e == nil && info.Size() == 0 {
				u.store.root.Remove(u.dir + "/journal") // made just now, or by a run that ended here too
			}
			f.Close()
			return err
		}
		if u.store.names(u.dir+"/journal", f) {
			u.journal = f
			return nil
		}
		f.Close() // the process that had it has finished and removed it
	}
}

func (u *upload) allocate(ctx context.Context) error {
	if err := u.data.Truncate(u.size); err != nil {
		return err
	}
	err := u.store.fallocate(int(u.data.Fd()), 0, 0, u.size)
	for errors.Is(err, unix.EINTR) { // Go's own signals interrupt it where it takes long
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = u.store.fallocate(int(u.data.Fd()), 0, 0, u.size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil // then a full disk shows when it is full
	}
	return err
}

// recover reads the journal up to a line that is not whole, and checks the parts' bytes.
func (u *upload) recover(ctx context.Context) error {
	text, err := io.ReadAll(u.journal)
	if err != nil {
		return err
	}
	parts, whole := parse(text)
	for _, p := range parts {
		if p.Offset < 0 || p.Size <= 0 || p.Offset > u.size-p.Size {
			continue
		}
		sum, err := sumOf(ctx, u.data, p.Offset, p.Size)
		if err != nil {
			return err
		}
		if sum == p.CRC32C {
			u.parts = append(u.parts, p)
		}
	}
	u.empty = len(u.parts) == 0
	slices.SortFunc(u.parts, func(a, b stager.Part) int { return cmp.Compare(a.Offset, b.Offset) })
	return u.journal.Truncate(whole)
}

// parse reads a journal up to a line that is not whole, and returns the length of what it read.
func parse(journal []byte) (parts []stager.Part, whole int64) {
	for l := range bytes.Lines(journal) {
		var p line
		if l[len(l)-1] != '\n' || json.Unmarshal(l, &p) != nil {
			break
		}
		whole += int64(len(l))
		parts = append(parts, stager.Part(p))
	}
	return parts, whole
}

// Peek says which parts a journal has. It does not read the parts' bytes, which an Upload checks.
func (s *Store) Peek(_ context.Context, _, dir string) ([]stager.Part, error) {
	text, err := fs.ReadFile(s.root.FS(), dir+"journal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	parts, _ := parse(text)
	return parts, s.explain(err)
}

func (u *upload) Parts() []stager.Part { return u.parts }

func (u *upload) Write(ctx context.Context, p stager.Part, data [][]byte) error {
	off := p.Offset
	for _, b := range data {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := u.data.WriteAt(b, off); err != nil {
			return u.store.explain(err)
		}
		off += int64(len(b))
	}
	if err := unix.Fdatasync(int(u.data.Fd())); err != nil {
		return u.store.explain(fmt.Errorf("writing %s to the medium: %w", u.key, err))
	}
	text, err := json.Marshal(line(p))
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.empty = false
	_, err = u.journal.Write(append(text, '\n'))
	return u.store.explain(err)
}

// Commit links the data to its key. A process that dies between the link and the removal leaves two
// names of one file; the next Upload finds the key and writes to neither.
func (u *upload) Commit(_ context.Context, parts []stager.Part) error {
	var end int64
	var sum uint32
	for _, p := range parts {
		if p.Offset != end {
			return fmt.Errorf("the parts of %s leave a gap at %d", u.key, end)
		}
		end, sum = end+p.Size, manifest.CombineCRC32C(sum, p.CRC32C, p.Size)
	}
	if end != u.size {
		return fmt.Errorf("the parts of %s end at %d of %d", u.key, end, u.size)
	}
	if err := u.data.Sync(); err != nil {
		return u.store.explain(err)
	}
	err := u.store.link(u.dir+"/data", u.key)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		// Somebody else has finished the file, and perhaps the whole model.
		if same, _ := u.store.sums(u.key, u.size, sum); same {
			err = nil
		} else if errors.Is(err, fs.ErrExist) {
			err = stager.Fail(fs.ErrExist, "%s/%s is there with other content and is left untouched: remove it, or use another directory", u.store, u.key)
		}
	}
	if err != nil {
		return u.store.explain(err)
	}
	u.remove()
	return nil
}

// sums reports whether the file at key has the size and the sum.
func (s *Store) sums(key string, size int64, want uint32) (bool, error) {
	f, err := s.root.Open(key)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := crc32.New(manifest.Castagnoli)
	n, err := io.Copy(h, io.LimitReader(f, size+1))
	return n == size && h.Sum32() == want, err
}

// remove forgets the parts, the journal first: without it the data means nothing.
func (u *upload) remove() {
	u.empty = false // from now on the names may be another process's
	u.store.root.Remove(u.dir + "/journal")
	u.store.root.Remove(u.dir + "/data")
	u.store.prune(path.Clean(u.dir))
}

func (u *upload) Discard(context.Context) error {
	u.remove()
	return nil
}

// Close gives the reserved space back where no part is in it.
func (u *upload) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.empty {
		u.remove()
	}
	return errors.Join(u.data.Close(), u.journal.Close())
}
