package modelfs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// forever is how long the kernel may keep an answer that cannot change.
const forever = 365 * 24 * time.Hour

// mtime is every file's time in seconds since 1970: a model has a commit and no date, and the same
// model looks the same everywhere. (Zero would do, but makes some archivers complain.)
const mtime = 315532800 // 1980-01-01

// kernel answers the kernel's requests. Those that are not here are refused by the default, or by
// the kernel itself since the mount is read-only.
//
// Node numbers are fixed, so the kernel's count of its lookups is not kept, and opens have no state.
type kernel struct {
	fuse.RawFileSystem
	*FS
}

func (k *kernel) String() string { return "headstart" }

func (k *kernel) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, _ := k.tree.node(in.NodeId)
	if dir == nil || dir.file >= 0 {
		return fuse.ENOENT
	}
	n := dir.byName[name]
	if n == nil {
		out.SetEntryTimeout(forever) // there will never be one
		return fuse.OK
	}
	k.entry(n, out)
	return fuse.OK
}

// entry describes n. A file that is complete is its second inode from now on; until then the answer
// may not be kept, so that the next lookup sees the change.
func (k *kernel) entry(n *node, out *fuse.EntryOut) {
	out.NodeId = n.id
	if n.file >= 0 && k.backed(n.file) {
		out.NodeId = k.tree.second(n)
	}
	if n.file < 0 || out.NodeId != n.id || !k.passthrough.Load() {
		out.SetEntryTimeout(forever)
	}
	out.SetAttrTimeout(forever)
	k.attr(n, out.NodeId, &out.Attr)
}

func (k *kernel) attr(n *node, id uint64, out *fuse.Attr) {
	out.Ino = id
	out.Size = uint64(n.size)
	out.Blocks = uint64(n.size+511) / 512
	out.Blksize = 4096
	out.Atime, out.Mtime, out.Ctime = mtime, mtime, mtime
	out.Mode = n.mode()
	out.Nlink = n.links()
}

func (k *kernel) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, _ := k.tree.node(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	out.SetTimeout(forever)
	k.attr(n, in.NodeId, &out.Attr)
	return fuse.OK
}

func (k *kernel) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, second := k.tree.node(in.NodeId)
	if n == nil || n.file < 0 {
		return fuse.Status(syscall.ESTALE)
	}
	if second {
		k.counters.passthroughOpens.Add(1)
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, k.files[n.file].backing()
		return fuse.OK
	}
	// Around the page cache a reader asks for one piece at a time and every reader for its own.
	// Refused here, all of them fall back to reading through it.
	if in.Flags&unix.O_DIRECT != 0 {
		return fuse.EINVAL
	}
	k.counters.servedOpens.Add(1)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Flush is unknown here, so that the kernel stops asking: a close then needs no answer and cannot
// fail, also when this process has gone.
func (k *kernel) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (k *kernel) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.OK
}

func (k *kernel) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return k.list(in, func(n *node, name string) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: name, Mode: n.mode(), Ino: n.id})
	})
}

func (k *kernel) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return k.list(in, func(n *node, name string) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Mode: n.mode(), Ino: n.id})
		if entry != nil && name != "." && name != ".." {
			k.entry(n, entry)
		}
		return entry != nil
	})
}

// list calls add for the entries of a folder from in.Offset on, as long as there is room.
func (k *kernel) list(in *fuse.ReadIn, add func(n *node, name string) bool) fuse.Status {
	dir, _ := k.tree.node(in.NodeId)
	if dir == nil || dir.file >= 0 {
		return fuse.ENOTDIR
	}
	for i := in.Offset; i < uint64(len(dir.children)+2); i++ {
		fits := false
		switch i {
		case 0:
			fits = add(dir, ".")
		case 1:
			fits = add(dir.parent, "..")
		default:
			fits = add(dir.children[i-2], dir.children[i-2].name)
		}
		if !fits {
			break
		}
	}
	return fuse.OK
}

func (k *kernel) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize = 4096, 4096
	out.Blocks = uint64(k.tree.size+4095) / 4096
	out.Files = uint64(len(k.tree.nodes))
	out.NameLen = 255
	return fuse.OK
}

func (k *kernel) GetXAttr(<-chan struct{}, *fuse.InHeader, string, []byte) (uint32, fuse.Status) {
	return 0, fuse.ENODATA
}

func (k *kernel) ListXAttr(<-chan struct{}, *fuse.InHeader, []byte) (uint32, fuse.Status) {
	return 0, fuse.OK
}
