package loader

import (
	"os"
	"path/filepath"

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

// clear takes away what is ours at a target without a lease, and returns what is left there that is
// not, or nil.
func (l *Loader) clear(target string) (*mount.Point, error) {
	for {
		p, err := mount.At(target)
		if err != nil || p == nil {
			return nil, err
		}
		if mine, err := l.mine(p); err != nil || !mine {
			return p, err
		}
		l.cfg.Log.Warn("a mount without a lease is taken away", "target", target)
		if err := mount.Unmount(target); err != nil {
			return nil, err
		}
	}
}

// mine reports whether a mount is one that this cache's node made: it shows an entry, also one that
// was set aside or removed, or a modelfs of this process, or one whose process has died.
func (l *Loader) mine(p *mount.Point) (bool, error) {
	if modelfs.Ours(p) {
		return l.shows(p) || p.Dead(), nil
	}
	for _, dir := range []string{"entries", "aside"} {
		if mine, err := p.Shows(filepath.Join(l.cfg.Cache.Dir(), dir)); err != nil || mine {
			return mine, err
		}
	}
	return false, nil
}

func (l *Loader) shows(p *mount.Point) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.shown {
		if f.Shown(p) {
			return true
		}
	}
	return false
}
