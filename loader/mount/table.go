package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Point is one line of the kernel's table of mounts.
type Point struct {
	ID, Parent int
	Device     string // "major:minor" of the file system
	Root       string // what of the file system is mounted, "/" for all
	Target     string // where
	Options    string // of this mount, with commas: "ro,nosuid,nodev,relatime"
	Type       string // "ext4", "fuse.headstart"
	Source     string
	Super      string // options of the file system, with commas: "rw,size=1048576k,huge=always"
}

// ReadOnly reports whether nothing can be written through the mount.
func (p *Point) ReadOnly() bool {
	for option := range strings.SplitSeq(p.Options, ",") {
		if option == "ro" {
			return true
		}
	}
	return false
}

// Dead reports whether the process that served the mount has gone: every access is then ENOTCONN.
// It asks with statfs, the one question that the kernel never answers from its caches.
func (p *Point) Dead() bool {
	if !strings.HasPrefix(p.Type, "fuse") {
		return false
	}
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(p.Target, &st), syscall.ENOTCONN)
}

// Table returns the mounts that this process sees.
func Table() ([]Point, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Parse(f)
}

// At returns the mount that is on top at target, or nil where nothing is mounted exactly there.
// It never touches target itself, so a mount that hangs cannot make it hang.
func At(target string) (*Point, error) {
	table, err := Table()
	if err != nil {
		return nil, err
	}
	return top(table, target), nil
}

// top finds, among mounts that lie on each other at target, the one on which no other lies.
func top(table []Point, target string) *Point {
	var found *Point
	for i := range table {
		if table[i].Target == target && (found == nil || table[i].Parent == found.ID || found.Parent != table[i].ID) {
			found = &table[i]
		}
	}
	return found
}

// maxLine bounds one line of mountinfo: two paths, each byte of which may be an escape of four.
const maxLine = 64 << 10

// Shows reports whether what is mounted is dir or lies below it, also where it was removed since.
func (p *Point) Shows(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	table, err := Table()
	if err != nil {
		return false, err
	}
	below := dir
	for top(table, below) == nil && below != "/" {
		below = filepath.Dir(below)
	}
	home := top(table, below)
	if home == nil || home.Device != p.Device {
		return false, nil
	}
	root := filepath.Join(home.Root, strings.TrimPrefix(dir, below))
	return p.Root == root || strings.HasPrefix(p.Root, root+"/"), nil
}

// Parse reads a table in the form of /proc/PID/mountinfo, see proc_pid_mountinfo(5).
func Parse(r io.Reader) ([]Point, error) {
	var table []Point
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		p, err := parseLine(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("mountinfo, line %d: %w", n, err)
		}
		table = append(table, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return table, nil
}

// parseLine reads "ID PARENT MAJ:MIN ROOT TARGET OPTIONS [TAG…] - TYPE SOURCE SUPER".
func parseLine(line string) (Point, error) {
	own, fsys, ok := strings.Cut(line, " - ")
	left, right := strings.Split(own, " "), strings.Split(fsys, " ")
	if !ok || len(left) < 6 || len(right) < 2 {
		return Point{}, errors.New("too few fields")
	}
	id, err := strconv.Atoi(left[0])
	if err != nil {
		return Point{}, err
	}
	parent, err := strconv.Atoi(left[1])
	if err != nil {
		return Point{}, err
	}
	p := Point{ID: id, Parent: parent, Device: left[2], Root: unescape(left[3]), Target: unescape(left[4]),
		Options: left[5], Type: unescape(right[0]), Source: unescape(right[1])}
	if len(right) > 2 {
		p.Super = right[2]
	}
	return p, nil
}

// unescape undoes the kernel's writing of blank, tab, newline, backslash and hash as \ooo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
