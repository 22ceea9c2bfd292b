package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// Seal makes a filled entry complete: its files are read-only and carry one time of change, by which
// a later change is noticed. It does not wait for the disk (see [Entry.Sync]), but for an entry of
// [OpenDir]: that is synced first, and its files take their places last.
func (e *Entry) Seal() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sealed.Load() {
		return nil
	}
	if !e.Filled() {
		panic("cache: Seal of an entry that is not filled")
	}
	if err := e.begin(); err != nil {
		return err
	}
	e.head.stamp = time.Unix(max(1, time.Now().Unix()), 0) // 0 says that it is not sealed
	if err := e.finish(); err != nil {
		return fmt.Errorf("sealing entry %s: %w", e.id, err)
	}
	e.sealed.Store(true)
	e.seals++
	return e.release()
}

func (e *Entry) finish() error {
	root, err := os.OpenRoot(e.base())
	if err != nil {
		return err
	}
	defer root.Close()
	for i := range e.files {
		name := e.below(e.path(i))
		if err := root.Chmod(name, 0o444); err != nil {
			return err
		}
		if err := root.Chtimes(name, e.head.stamp, e.head.stamp); err != nil {
			return err
		}
	}
	if e.dest == "" {
		if err := e.chmodDirs(root, 0o555); err != nil {
			return err
		}
		return e.writeHeader()
	}
	if err := e.syncPaths(context.Background(), e.paths()); err != nil {
		return e.lost(context.Background(), err)
	}
	if err := e.moveIn(); err != nil {
		return err
	}
	if err := e.syncPaths(context.Background(), e.paths()[len(e.files):]); err != nil {
		return e.lost(context.Background(), err)
	}
	e.head.durable = true
	if err := e.writeHeader(); err != nil {
		return err
	}
	return root.RemoveAll(e.below(filepath.Join(e.dir, "data")))
}

func (e *Entry) writeHeader() error {
	if _, err := e.state.WriteAt(e.head.marshal(), 0); err != nil {
		return err
	}
	if e.head.durable && !e.medium.memory {
		return e.state.Sync()
	}
	return nil
}

// base returns the directory that all of the entry is below. Another user may own it and put links
// where the entry's directories were, so modes and times are set through an os.Root of it.
func (e *Entry) base() string {
	if e.dest != "" {
		return e.dest
	}
	return e.dir
}

// below returns the path of one of the entry's files or directories relative to base.
func (e *Entry) below(path string) string {
	return strings.TrimPrefix(path, strings.TrimSuffix(e.base(), "/")+"/")
}

func (e *Entry) chmodDirs(root *os.Root, mode os.FileMode) error {
	return chmodDirs(root, e.below(filepath.Join(e.dir, "data")), mode)
}

func chmodDirs(root *os.Root, name string, mode os.FileMode) error {
	return fs.WalkDir(root.FS(), name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return root.Chmod(path, mode)
	})
}

// Sync waits until a sealed entry is on its disk, so that it holds across a crash of the machine
// without being read again. It stops between two files when ctx ends.
//
// If the disk fails, the kernel may have dropped what it could not write, and says so only once: the
// entry is then no longer complete and each of its chunks is suspect.
func (e *Entry) Sync(ctx context.Context) error {
	e.mu.Lock()
	if !e.sealed.Load() || e.head.durable {
		e.mu.Unlock()
		return nil
	}
	paths, seals := e.paths(), e.seals
	e.mu.Unlock()
	err := e.syncPaths(ctx, paths)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.sealed.Load(): // chunks are received again, and who seals it then syncs it
		if err != nil && ctx.Err() == nil {
			e.unsynced = err // the kernel has said it once
		}
		return nil
	case err == nil && e.seals != seals:
		return nil
	case err == nil:
		err, e.unsynced = e.unsynced, nil
	}
	if err != nil {
		return fmt.Errorf("syncing entry %s: %w", e.id, e.lost(ctx, err))
	}
	if err := e.begin(); err != nil {
		return err
	}
	e.head.durable = true
	if err := e.writeHeader(); err != nil {
		return fmt.Errorf("syncing entry %s: %w", e.id, err)
	}
	return e.release()
}

// lost makes every chunk suspect after a sync that failed with err, in memory and on the disk, so that
// it is read back before it counts again. Nobody writes to the entry. Who reads its files goes on.
func (e *Entry) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) {
		return err // nothing is known, or nothing is left
	}
	var all []manifest.Chunk
	for i := range e.files {
		all = slices.AppendSeq(all, e.m.ChunksOf(i))
	}
	if failed := e.doubt(all); failed != nil {
		return fmt.Errorf("%w (and making it ready to be read back failed: %v)", err, failed)
	}
	return err
}

// Doubt makes chunks of a complete entry suspect: they are read back before they count again, and received
// again, in place, if they are wrong. The entry is not complete meanwhile. Who reads its files goes on.
func (e *Entry) Doubt(chunks []manifest.Chunk) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.sealed.Load() {
		return nil
	}
	if err := e.doubt(chunks); err != nil {
		return fmt.Errorf("entry %s: %w", e.id, err)
	}
	return nil
}

// doubt makes verified chunks suspect, in memory and on the disk. Nobody writes to the entry. The caller
// holds e.mu.
func (e *Entry) doubt(chunks []manifest.Chunk) error {
	for _, c := range chunks {
		if !e.chunks[e.first[c.File]+c.Index].CompareAndSwap(verified, suspect) {
			continue
		}
		e.bytes.Add(-c.Size)
		if e.left[c.File].Add(1) == 1 {
			e.open.Add(1)
		}
	}
	e.sealed.Store(false)
	states := make([]byte, len(e.chunks))
	for i := range states {
		states[i] = byte(e.chunks[i].Load())
	}
	return e.reopen(states)
}

// paths returns the files and the directories that their names stand in, each before its parent.
func (e *Entry) paths() []string {
	var files, dirs []string
	done := make(map[string]bool)
	for i := range e.files {
		files = append(files, e.path(i))
		for dir := filepath.Dir(e.path(i)); !done[dir]; dir = filepath.Dir(dir) {
			done[dir] = true
			dirs = append(dirs, dir)
			if dir == e.dest || dir == e.dir {
				break
			}
		}
	}
	return append(files, dirs...)
}

func (e *Entry) syncPaths(ctx context.Context, paths []string) error {
	if e.medium.memory {
		return nil
	}
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := syncPath(path); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
