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

// look says what is at the target of a lease. What has no files inside is as good as dead.
func (m *model) look(le *lease) (state, error) {
	if le.files() == le.Target {
		return m.lookAt(le.Target)
	}
	p, err := mount.At(le.Target)
	switch {
	case err != nil || p == nil:
		return missing, err
	case modelfs.Ours(p) || !same(m.loader.frame(m.id), le.Target):
		return foreign, nil
	}
	state, err := m.lookAt(le.files())
	if state == missing {
		state = dead
	}
	return state, err
}

// lookAt says what is at a path at which m's files are to be. A mount that this process serves is told by its
// number: it must not be touched, see [modelfs].
func (m *model) lookAt(target string) (state, error) {
	p, err := mount.At(target)
	switch {
	case err != nil:
		return missing, err
	case p == nil:
		return missing, nil
	case m.shows(p):
		return intact, nil
	case m.loader.shows(p):
		return foreign, nil
	case modelfs.Ours(p) && p.Dead():
		return dead, nil
	case !modelfs.Ours(p) && m.isEntry(target):
		return intact, nil
	}
	return foreign, nil
}

// shows reports whether p is the mount that shows m while it loads.
func (m *model) shows(p *mount.Point) bool {
	m.loader.mu.Lock()
	defer m.loader.mu.Unlock()
	return m.fs != nil && m.fs.Shown(p)
}

// isEntry reports whether dir is the folder of m's files.
func (m *model) isEntry(dir string) bool {
	m.loader.mu.Lock()
	entry := m.entry
	m.loader.mu.Unlock()
	return entry != nil && same(entry.Dir(), dir)
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
	ours := []string{filepath.Join(l.cfg.Cache.Dir(), "hf")}
	for _, place := range l.cfg.Cache.AllPlaces() {
		ours = append(ours, filepath.Join(place.Dir(), "entries"), filepath.Join(place.Dir(), "aside"))
	}
	for _, dir := range ours {
		if mine, err := p.Shows(dir); err != nil || mine {
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
