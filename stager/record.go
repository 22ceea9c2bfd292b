package stager

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/headstart-serving/headstart/manifest"
)

// partsOf is the prefix of what is kept while m is being staged.
func partsOf(m manifest.Model) string {
	return manifest.Private + "parts/" + m.Repo + "/" + m.Commit + "/"
}

// dirOf is the prefix of what is kept of one file. Paths may be longer than what a name below it
// could be, so their hash stands for them.
func dirOf(m manifest.Model, path string) string {
	sum := sha256.Sum256([]byte(path))
	return partsOf(m) + hex.EncodeToString(sum[:16]) + "/"
}

// recordOf is the key of a file's record: written before the object becomes visible, removed after the
// manifest is. It is why a run that died between the two needs no byte of the file again.
func recordOf(m manifest.Model, path string) string { return dirOf(m, path) + "record" }

// record is a manifest entry that is not in a manifest yet.
type record struct {
	Path   string   `json:"path"`
	Size   int64    `json:"size"`
	SHA256 string   `json:"sha256"`
	CRC32C uint32   `json:"crc32c"`
	Chunk  int64    `json:"chunk_size"`
	Chunks hexSums  `json:"chunks"`
	_      struct{} // keyed literals only
}

// hexSums are CRC32Cs, 8 digits each in JSON.
type hexSums []uint32

func (h hexSums) MarshalText() ([]byte, error) {
	var b []byte
	for _, sum := range h {
		b = fmt.Appendf(b, "%08x", sum)
	}
	return b, nil
}

func (h *hexSums) UnmarshalText(text []byte) error {
	if len(text)%8 != 0 {
		return errors.New("the sums have not 8 digits each")
	}
	raw := make([]byte, len(text)/2)
	if _, err := hex.Decode(raw, text); err != nil {
		return err
	}
	*h = make(hexSums, len(raw)/4)
	for i := range *h {
		(*h)[i] = uint32(raw[4*i])<<24 | uint32(raw[4*i+1])<<16 | uint32(raw[4*i+2])<<8 | uint32(raw[4*i+3])
	}
	return nil
}

func marshalRecord(f manifest.File, chunkSize int64) []byte {
	b, err := json.Marshal(record{Path: f.Path, Size: f.Size, SHA256: f.SHA256.String(), CRC32C: f.CRC32C, Chunk: chunkSize, Chunks: f.Chunks})
	if err != nil {
		panic("stager: a record that does not marshal: " + err.Error())
	}
	return b
}

// parseRecord reads the record of f. The bucket is hostile: what does not fit f is an error, and then
// the object is read instead.
func parseRecord(data []byte, f RemoteFile, chunkSize int64) (manifest.File, error) {
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return manifest.File{}, err
	}
	digest, err := manifest.ParseDigest(r.SHA256)
	if err != nil {
		return manifest.File{}, err
	}
	switch {
	case r.Path != f.Path || r.Size != f.Size || r.Chunk != chunkSize:
		return manifest.File{}, errors.New("the record is of another file")
	case f.SHA256 != nil && digest != *f.SHA256:
		return manifest.File{}, errors.New("the record is of other bytes")
	case manifest.NumChunks(f.Size, chunkSize) != int64(len(r.Chunks)):
		return manifest.File{}, errors.New("the record has not one sum a chunk")
	}
	file := manifest.File{Path: f.Path, Size: f.Size, SHA256: digest, CRC32C: r.CRC32C, Chunks: r.Chunks}
	if combine(file.Chunks, f.Size, chunkSize) != file.CRC32C {
		return manifest.File{}, errors.New("the record's sums do not add up")
	}
	return file, nil
}

// combine returns the CRC32C of size bytes from those of their chunks.
func combine(chunks []uint32, size, chunkSize int64) uint32 {
	var sum uint32
	for i, c := range chunks {
		sum = manifest.CombineCRC32C(sum, c, min(chunkSize, size-int64(i)*chunkSize))
	}
	return sum
}

// note is what a part remembers, so that another process can go on behind it.
type note struct {
	Chunks hexSums `json:"chunks"` // of the part's chunks
	Before []byte  `json:"before"` // the state of the file's sums before the part
	After  []byte  `json:"after"`  // and after it
}

func (n note) marshal() []byte {
	b, err := json.Marshal(n)
	if err != nil {
		panic("stager: a note that does not marshal: " + err.Error())
	}
	return b
}

// parseNote reads the note of a part that this version wrote for the same division into chunks.
func parseNote(p Part, chunkSize int64) (note, error) {
	var n note
	if err := json.Unmarshal(p.Note, &n); err != nil {
		return note{}, err
	}
	if manifest.NumChunks(p.Size, chunkSize) != int64(len(n.Chunks)) {
		return note{}, errors.New("the note has not one sum a chunk")
	}
	if combine(n.Chunks, p.Size, chunkSize) != p.CRC32C {
		return note{}, errors.New("the note's sums are not those of the part")
	}
	return n, nil
}
