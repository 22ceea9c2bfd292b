package loader

import (
	"os"

	"github.com/headstart-serving/headstart/loader/modelfs"
	"github.com/headstart-serving/headstart/loader/mount"
)

// What is found at the target of a lease.
type state int

const (
	missing state = iota // nothing is mounted there
	intact               // what the lease says
	dead                 // a mount of ours whose process has died
	foreign              // somebody else's mount
)

// look says what is at a target that is leased to m.
func (m *model) look(target string) (state, error) {
	p, err := mount.At(target)
	switch {
	case err != nil:
		return missing, err
	case p == nil:
		return missing, nil
	case modelfs.Ours(p) && p.Dead():
		return dead, nil
	}
	for _, dir := range m.dirs() {
		if same(dir, target) {
			return intact, nil
		}
	}
	return foreign, nil
}

// dirs returns the folders that a mount of m's may show.
func (m *model) dirs() []string {
	m.loader.mu.Lock()
	defer m.loader.mu.Unlock()
	var dirs []string
	if m.entry != nil {
		dirs = append(dirs, m.entry.Dir())
	}
	if m.fs != nil {
		dirs = append(dirs, m.fs.Dir())
	}
	return dirs
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// clear takes away a mount of ours that lost its lease and its process.
func (l *Loader) clear(target string) error {
	p, err := mount.At(target)
	if err != nil || p == nil || !modelfs.Ours(p) || !p.Dead() {
		return err
	}
	l.cfg.Log.Warn("a mount without a lease, whose process has died, is replaced", "target", target)
	return mount.Unmount(target)
}
