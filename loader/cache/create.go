package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/tmpfs"
	"github.com/headstart-serving/headstart/manifest"
)

// create makes an entry's files below e.dir, which exists and is empty: all of their room is
// allocated, nothing is received. Whoever calls it removes e.dir after an error.
func (e *Entry) create() error {
	if err := e.checkRoom(); err != nil {
		return err
	}
	before := e.hugeNow()
	if err := e.makeFiles(nil); err != nil {
		return err
	}
	e.huge = min(max(0, e.hugeNow()-before), e.m.Size())
	if err := e.writeFile("chunks", append(e.head.marshal(), make([]byte, len(e.chunks))...), 0o600); err != nil {
		return err
	}
	// The manifest comes last: a directory without it is one that nothing was received into.
	return e.writeFile("manifest.json", e.raw, 0o444)
}

// checkRoom compares what the files need with what the medium has, so that the usual case of too
// little room is found before anything is allocated, and with numbers.
func (e *Entry) checkRoom() error {
	room, err := e.medium.room(e.dir)
	if err != nil {
		return err
	}
	if need := e.need(room.Block); need > room.Available {
		return e.noRoom(need, room)
	}
	return nil
}

// need returns the bytes that the entry allocates on a medium with blocks of that size.
func (e *Entry) need(block uint64) uint64 {
	var need uint64
	for i := range e.m.Files {
		n := (uint64(e.m.Files[i].Size) + block - 1) / block * block
		if n > math.MaxUint64-need {
			return math.MaxUint64
		}
		need += n
	}
	return need
}

func (e *Entry) noRoom(need uint64, room Room) error {
	home := e.home()
	bound := ""
	if room.Bound != "" {
		bound = " by " + room.Bound
	}
	hint := ""
	if aside := filepath.Join(home, "aside"); e.dest == "" {
		if n := used(aside); n > 0 {
			hint = fmt.Sprintf("; %d bytes are in %s, which nobody uses", n, aside)
		}
	}
	return fail(unix.ENOSPC, "%s needs %d bytes, but only %d are available in %s%s%s: make room or use another directory", e.m.Model, need, room.Available, home, bound, hint)
}

// home returns the directory that a person knows: the cache's, or the one that is fetched into.
func (e *Entry) home() string {
	if e.dest != "" {
		return e.dest
	}
	return filepath.Dir(filepath.Dir(e.dir)) // of entries/<id>
}

// used returns the bytes that are allocated below dir, as far as they can be seen.
func used(dir string) uint64 {
	var n uint64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if st, err := d.Info(); err == nil {
			n += allocated(st)
		}
		return nil
	})
	return n
}

// allocated returns the bytes that a file has on its medium.
func allocated(st fs.FileInfo) uint64 {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(sys.Blocks) * 512 // stat(2) counts blocks of 512 bytes on every file system
}

// makeFiles makes and allocates the files below data, those that skip reports excepted.
func (e *Entry) makeFiles(skip func(file int) bool) error {
	data := filepath.Join(e.dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return explain(e.home(), err)
	}
	root, err := os.OpenRoot(data)
	if err != nil {
		return explain(e.home(), err)
	}
	defer root.Close()
	for i := range e.m.Files {
		if skip != nil && skip(i) {
			continue
		}
		if err := e.makeFile(root, &e.m.Files[i]); err != nil {
			return err
		}
		e.files[i].allocated = true
	}
	return nil
}

func (e *Entry) makeFile(root *os.Root, mf *manifest.File) error {
	name := filepath.FromSlash(mf.Path)
	if !filepath.IsLocal(name) {
		return fail(manifest.ErrInvalid, "%s: the path %q leaves the model's directory", e.m.Model, mf.Path)
	}
	if dir := path.Dir(mf.Path); dir != "." {
		if err := root.MkdirAll(filepath.FromSlash(dir), 0o755); err != nil {
			return explain(e.home(), err)
		}
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return explain(e.home(), err)
	}
	err = allocate(f, mf.Size)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.ENOMEM) {
		// More than the file system thought it had: what is free now is what was left over.
		if room, roomErr := e.medium.room(e.dir); roomErr == nil {
			room.Available += e.made()
			err = e.noRoom(e.need(room.Block), room)
		}
	} else if err != nil {
		err = explain(e.home(), err)
	}
	return errors.Join(err, f.Close())
}

// made returns the bytes that are allocated below data.
func (e *Entry) made() uint64 { return used(filepath.Join(e.dir, "data")) }

// hugeNow returns the bytes in huge pages, where the entry may get some.
func (e *Entry) hugeNow() int64 {
	if !e.medium.memory {
		return 0
	}
	return tmpfs.HugeBytes()
}

// writeFile writes a small file of the entry and syncs it: after a crash of the machine the entry is
// there with it or not at all.
func (e *Entry) writeFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(filepath.Join(e.dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return explain(e.home(), err)
	}
	_, err = f.Write(data)
	if err == nil && !e.medium.memory {
		err = f.Sync()
	}
	return explain(e.home(), errors.Join(err, f.Close()))
}

// removeTree removes an entry's directory, whose own directories may be read-only. It follows no link
// out of base.
func removeTree(base string, elem ...string) error {
	name := filepath.Join(elem...)
	root, err := os.OpenRoot(base)
	if err != nil {
		return fmt.Errorf("removing %s: %w", filepath.Join(base, name), err)
	}
	defer root.Close()
	_ = chmodDirs(root, name, 0o755) // RemoveAll says what does not work
	if err := root.RemoveAll(name); err != nil {
		return fmt.Errorf("removing %s: %w", filepath.Join(base, name), err)
	}
	return nil
}
