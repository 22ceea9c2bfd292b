package modelfs

import (
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/headstart-serving/headstart/manifest"
)

// tree is the folder as the manifest describes it. It never changes.
//
// Nodes are numbered from 1, the root, in the order of the manifest's paths. The second inode of a
// file has the file's number plus the number of nodes.
type tree struct {
	nodes []*node // by number less one
	size  int64   // bytes of all files
}

type node struct {
	id       uint64
	name     string
	parent   *node
	children []*node          // of a folder, in natural order
	byName   map[string]*node // of a folder
	file     int              // index into the manifest's files, or -1 for a folder
	size     int64            // bytes
}

func newTree(m *manifest.Manifest) *tree {
	t := &tree{size: m.Size()}
	root := t.add(nil, "", -1, 0)
	for i := range m.Files {
		dir := root
		segments := strings.Split(m.Files[i].Path, "/")
		for _, name := range segments[:len(segments)-1] {
			next := dir.byName[name]
			if next == nil {
				next = t.add(dir, name, -1, 0)
			}
			dir = next
		}
		t.add(dir, segments[len(segments)-1], i, m.Files[i].Size)
	}
	for _, n := range t.nodes {
		slices.SortFunc(n.children, func(a, b *node) int { return manifest.NaturalOrder(a.name, b.name) })
	}
	return t
}

func (t *tree) add(parent *node, name string, file int, size int64) *node {
	n := &node{id: uint64(len(t.nodes) + 1), name: name, parent: parent, file: file, size: size}
	if file < 0 {
		n.byName = map[string]*node{}
	}
	if parent == nil {
		n.parent = n
	} else {
		parent.children = append(parent.children, n)
		parent.byName[name] = n
	}
	t.nodes = append(t.nodes, n)
	return n
}

// node finds the node of a number, and whether the number is that of a file's second inode.
func (t *tree) node(id uint64) (n *node, second bool) {
	count := uint64(len(t.nodes))
	switch {
	case id >= 1 && id <= count:
		return t.nodes[id-1], false
	case id > count && id <= 2*count && t.nodes[id-count-1].file >= 0:
		return t.nodes[id-count-1], true
	}
	return nil, false
}

// second returns the number of n's second inode.
func (t *tree) second(n *node) uint64 { return n.id + uint64(len(t.nodes)) }

// mode returns n's type and permissions.
func (n *node) mode() uint32 {
	if n.file < 0 {
		return fuse.S_IFDIR | 0o555
	}
	return fuse.S_IFREG | 0o444
}

// links counts a folder's entries that are folders, its own and its parent's, as file systems do.
func (n *node) links() uint32 {
	if n.file >= 0 {
		return 1
	}
	links := uint32(2)
	for _, c := range n.children {
		if c.file < 0 {
			links++
		}
	}
	return links
}
