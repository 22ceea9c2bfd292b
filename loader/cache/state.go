package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/headstart-serving/headstart/manifest"
)

// What the file "chunks" of an entry says about one chunk, in one byte.
const (
	absent   = 0 // not received, or not known
	verified = 1 // received and verified in the boot that the header names
	suspect  = 2 // verified in an earlier boot: its bytes may never have reached the disk
)

// header is the beginning of the file "chunks"; a byte for each chunk of each file follows.
//
// Bytes that a process wrote survive its death, since they are in the page cache, and do not survive
// the machine's: the boot's id tells the two apart. An entry that is sealed and durable was synced
// and holds across boots.
type header struct {
	boot    string          // the boot in which chunks were recorded, 36 characters
	sum     manifest.Digest // of the manifest
	stamp   time.Time       // whole seconds; mtime of every file of a sealed entry, zero while it loads
	durable bool            // synced after it was sealed
}

const (
	headerSize = 128 // bytes
	magic      = "headstart chunks 1\n"
	bootAt     = 24
	bootSize   = 36
	sumAt      = 64
	stampAt    = 96
	durableAt  = 104
)

func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	copy(b[bootAt:bootAt+bootSize], h.boot)
	copy(b[sumAt:], h.sum[:])
	if !h.stamp.IsZero() {
		binary.LittleEndian.PutUint64(b[stampAt:], uint64(h.stamp.Unix()))
	}
	if h.durable {
		b[durableAt] = 1
	}
	return b
}

var errState = errors.New("the record of chunks is not one of this manifest")

func (h *header) unmarshal(b []byte) error {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(magic)) {
		return errState
	}
	h.boot = strings.TrimRight(string(b[bootAt:bootAt+bootSize]), "\x00")
	copy(h.sum[:], b[sumAt:])
	h.stamp = time.Time{}
	if s := int64(binary.LittleEndian.Uint64(b[stampAt:])); s != 0 {
		h.stamp = time.Unix(s, 0)
	}
	h.durable = b[durableAt] == 1
	return nil
}

// readState returns the header and the bytes of n chunks. What is not a record of this manifest is
// errState: then nothing is known about the chunks.
func readState(f *os.File, sum manifest.Digest, n int) (header, []byte, error) {
	var h header
	b := make([]byte, headerSize+n)
	if _, err := f.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return h, nil, errState
	} else if err != nil {
		return h, nil, err
	}
	if err := h.unmarshal(b[:headerSize]); err != nil {
		return h, nil, err
	}
	if h.sum != sum {
		return h, nil, errState
	}
	return h, b[headerSize:], nil
}

// bootID returns the kernel's name for this boot, or "" where there is none; then every boot counts
// as another one.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[:min(len(b), bootSize)]))
}
