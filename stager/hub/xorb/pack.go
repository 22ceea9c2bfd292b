package xorb

import (
	"bytes"
	"fmt"

	"github.com/pierrec/lz4/v4"
)

// Scheme is how a chunk is packed.
type Scheme byte

// The schemes that clients know.
const (
	Plain      Scheme = 0
	LZ4        Scheme = 1 // a frame
	ByteGroups Scheme = 2 // first every fourth byte, then those after them, …; then LZ4
)

// ParseScheme reads what a person calls a scheme.
func ParseScheme(s string) ([]Scheme, error) {
	switch s {
	case "none":
		return []Scheme{Plain}, nil
	case "lz4":
		return []Scheme{LZ4}, nil
	case "bg4":
		return []Scheme{ByteGroups}, nil
	case "mixed":
		return []Scheme{Plain, LZ4, ByteGroups}, nil
	}
	return nil, fmt.Errorf("there is no packing %q of chunks: take none, lz4, bg4 or mixed", s)
}

// headerSize is the bytes before each chunk: version, packed length in three, scheme, length in three.
const headerSize = 8

// packer packs chunks one after the other.
type packer struct {
	lz      *lz4.Writer
	grouped []byte
	packed  bytes.Buffer
}

// pack appends a chunk with its header to dst. What does not become smaller stays plain, as the Hub's uploader does.
func (p *packer) pack(dst, chunk []byte, s Scheme) ([]byte, error) {
	body := chunk
	if s != Plain {
		packed, err := p.squeeze(chunk, s)
		if err != nil {
			return nil, err
		}
		if body = packed; len(packed) >= len(chunk) {
			body, s = chunk, Plain
		}
	}
	n, m := len(body), len(chunk)
	dst = append(dst, 0, byte(n), byte(n>>8), byte(n>>16), byte(s), byte(m), byte(m>>8), byte(m>>16))
	return append(dst, body...), nil
}

func (p *packer) squeeze(chunk []byte, s Scheme) ([]byte, error) {
	if p.lz == nil {
		p.lz = lz4.NewWriter(nil)
		if err := p.lz.Apply(lz4.BlockSizeOption(lz4.Block256Kb), lz4.ChecksumOption(false), lz4.ConcurrencyOption(1)); err != nil {
			return nil, err
		}
	}
	if s == ByteGroups {
		p.grouped = groupBytes(p.grouped[:0], chunk)
		chunk = p.grouped
	}
	p.packed.Reset()
	p.lz.Reset(&p.packed)
	if _, err := p.lz.Write(chunk); err != nil {
		return nil, err
	}
	if err := p.lz.Close(); err != nil {
		return nil, err
	}
	return p.packed.Bytes(), nil
}

// groupBytes appends every fourth byte of src from the first, then from the second, the third and the fourth.
func groupBytes(dst, src []byte) []byte {
	for plane := range 4 {
		for i := plane; i < len(src); i += 4 {
			dst = append(dst, src[i])
		}
	}
	return dst
}
