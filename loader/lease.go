package loader

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/loader/mount"
)

// Mode is how a model is shown at a target.
type Mode string

const (
	Bind   Mode = "bind"   // the entry's own files
	Stream Mode = "stream" // a modelfs, which lets reads wait
)

// lease says that a target shows a model. It is written down before the target does.
type lease struct {
	Target  string    `json:"target"`
	Ref     string    `json:"ref"`   // as it was asked for
	Model   string    `json:"model"` // repo@commit
	Entry   string    `json:"entry"`
	Mode    Mode      `json:"mode"`
	Layout  Layout    `json:"layout"`  // missing in leases of before there was another than Plain
	Created bool      `json:"created"` // the target's folder was made for it
	Since   time.Time `json:"since"`

	model *model
}

// store keeps leases in a folder, a file for each.
type store struct{ dir string } // the cache's

// maxLease bounds the size of a lease's file in bytes: a target has at most 4096.
const maxLease = 64 << 10

func (s store) folder() string { return filepath.Join(s.dir, "leases") }

// name is the file of a target's lease. A target is too long and has the wrong letters for a name.
func name(target string) string {
	sum := sha256.Sum256([]byte(target))
	return hex.EncodeToString(sum[:16]) + ".json"
}

// save writes le down; it is on the medium when save returns.
func (s store) save(le *lease) error {
	data, err := json.Marshal(le)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.folder(), 0o700); err != nil {
		return fmt.Errorf("keeping a lease: %w", err)
	}
	if err := s.replace(name(le.Target), append(data, '\n')); err != nil {
		return fmt.Errorf("keeping a lease: %w", err)
	}
	return nil
}

// replace writes a file in one step: the old one or the new one is there, whenever the power fails.
func (s store) replace(name string, data []byte) error {
	f, err := os.CreateTemp(s.folder(), "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.folder(), name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return s.sync()
}

func (s store) sync() error {
	dir, err := os.Open(s.folder())
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remove forgets a target's lease.
func (s store) remove(target string) error {
	if err := os.Remove(filepath.Join(s.folder(), name(target))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dropping a lease: %w", err)
	}
	return nil
}

// all reads what an earlier process wrote down. A file that is not a lease is handed to bad and
// removed: what it said is lost either way.
func (s store) all(bad func(file string, err error)) ([]*lease, error) {
	entries, err := os.ReadDir(s.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var leases []*lease
	for _, e := range entries {
		path := filepath.Join(s.folder(), e.Name())
		le, err := read(path)
		if err == nil {
			leases = append(leases, le)
			continue
		}
		if !strings.HasPrefix(e.Name(), "new-") {
			bad(path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return leases, nil
}

func read(path string) (*lease, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLease))
	if err != nil {
		return nil, err
	}
	le := &lease{} // what a newer version says besides is not needed
	if err := json.Unmarshal(data, le); err != nil {
		return nil, err
	}
	if err := mount.CheckTarget(le.Target); err != nil {
		return nil, err
	}
	if le.Layout, err = ParseLayout(string(le.Layout)); err != nil {
		return nil, err
	}
	if filepath.Base(path) != name(le.Target) {
		return nil, fmt.Errorf("it is of target %s, which has another file", le.Target)
	}
	return le, nil
}
