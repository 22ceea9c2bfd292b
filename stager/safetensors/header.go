// Package safetensors reads the header of a *.safetensors file: which tensors it holds and where.
//
// A file is eight bytes (the header's length, little-endian), that many bytes of JSON and the
// tensors' bytes. The rules are those of the format's reference reader: the length is at most 100 MB,
// the JSON is UTF-8, each tensor has as many bytes as its shape and type ask for, and the tensors
// cover the rest of the file with no hole and no overlap. (It asks for no alignment: its writer pads the
// header to 8 bytes, its reader takes any length.) Stricter than that reader, no name and no key comes
// twice or is unknown. Whatever breaks a rule is an error that wraps [ErrInvalid] and names the tensor,
// so a header from anywhere can be read.
//
// Source: https://huggingface.co/docs/safetensors and safetensors/src/tensor.rs (read_metadata, validate)
// in https://github.com/huggingface/safetensors.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxHeader is the largest length in bytes that the format allows for the JSON.
const MaxHeader = 100_000_000

// ErrInvalid is what every error about a file's content wraps.
var ErrInvalid = errors.New("not a safetensors file")

// Tensor is one entry of a header.
type Tensor struct {
	Name  string
	DType string
	Shape []int64
	// Offset and Size are in bytes; Offset counts from the start of the file.
	Offset, Size int64
}

// Header is what a file says about itself.
type Header struct {
	Size     int64    // of the header in bytes, the eight bytes of its length included
	Tensors  []Tensor // in the order of their names, as the reference reader hands them out
	Metadata map[string]string
}

// Read reads the header of a file of size bytes with two reads: the length, then the JSON.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	var length [8]byte
	if size < int64(len(length)) {
		return nil, fmt.Errorf("%w: %d bytes, too short for a header", ErrInvalid, size)
	}
	if err := readFull(r, length[:], 0); err != nil {
		return nil, fmt.Errorf("reading the header's length: %w", err)
	}
	n, err := Length(length, size)
	if err != nil {
		return nil, err
	}
	text := make([]byte, n)
	if err := readFull(r, text, 8); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	return Parse(text, size)
}

// Length reads the first eight bytes of a file of size bytes: how many bytes of JSON follow.
func Length(first [8]byte, size int64) (int64, error) {
	n := binary.LittleEndian.Uint64(first[:])
	if n > MaxHeader || int64(n) > size-8 {
		return 0, fmt.Errorf("%w: header of %d bytes in a file of %d", ErrInvalid, n, size)
	}
	return int64(n), nil
}

// readFull fills p; a file that ends before is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// Parse reads the JSON of a header that stands in a file of size bytes.
func Parse(text []byte, size int64) (*Header, error) {
	h := &Header{Size: 8 + int64(len(text))}
	if size < h.Size {
		return nil, fmt.Errorf("%w: header of %d bytes in a file of %d", ErrInvalid, len(text), size)
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, fmt.Errorf("%w: the header does not begin with {", ErrInvalid)
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%w: the header is not UTF-8", ErrInvalid)
	}
	if err := h.parse(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := h.cover(size); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	slices.SortFunc(h.Tensors, func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	return h, nil
}

func (h *Header) parse(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	seen := make(map[string]bool)
	err := object(d, func(key string) error {
		if seen[key] {
			return fmt.Errorf("tensor %q stands there twice", clip(key))
		}
		seen[key] = true
		if key == "__metadata__" {
			return h.metadata(d)
		}
		if strings.ContainsRune(key, 0) {
			return fmt.Errorf("tensor %q has a null in its name", clip(key))
		}
		t, err := h.tensor(d, key)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", clip(key), err)
		}
		h.Tensors = append(h.Tensors, t)
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more after the header's object")
	}
	return nil
}

// metadata reads a map of strings, or null.
func (h *Header) metadata(d *json.Decoder) error {
	var m map[string]*string
	if err := d.Decode(&m); err != nil {
		return fmt.Errorf("__metadata__: %w", err)
	}
	if m != nil {
		h.Metadata = make(map[string]string, len(m))
	}
	for k, v := range m {
		if v == nil || strings.ContainsRune(k+*v, 0) {
			return fmt.Errorf("__metadata__: %q has no string, or one with a null", clip(k))
		}
		h.Metadata[k] = *v
	}
	return nil
}

// counts reads a list of numbers. (A null among them would leave a zero behind in a plain list.)
func counts(d *json.Decoder, into *[]uint64) error {
	var list []*uint64
	if err := d.Decode(&list); err != nil {
		return err
	}
	if list != nil {
		*into = make([]uint64, len(list))
	}
	for i, n := range list {
		if n == nil {
			return errors.New("null where a number should be")
		}
		(*into)[i] = *n
	}
	return nil
}

func (h *Header) tensor(d *json.Decoder, name string) (Tensor, error) {
	t := Tensor{Name: name}
	var offsets []uint64
	var shape []uint64
	seen := make(map[string]bool)
	err := object(d, func(key string) error {
		if seen[key] {
			return fmt.Errorf("%s stands there twice", key)
		}
		seen[key] = true
		switch key {
		case "dtype":
			return d.Decode(&t.DType)
		case "shape":
			return counts(d, &shape)
		case "data_offsets":
			return counts(d, &offsets)
		}
		return fmt.Errorf("unknown key %q", clip(key))
	})
	if err != nil {
		return t, err
	}
	if len(seen) != 3 || shape == nil || len(offsets) != 2 {
		return t, errors.New("want a dtype, a shape and two data_offsets")
	}
	begin, end := offsets[0], offsets[1]
	if begin > end || end > math.MaxInt64-uint64(h.Size) {
		return t, fmt.Errorf("data_offsets %d and %d", begin, end)
	}
	if want, err := numBytes(t.DType, shape); err != nil {
		return t, err
	} else if want != end-begin {
		return t, fmt.Errorf("%d bytes, but its shape and type ask for %d", end-begin, want)
	}
	for _, n := range shape {
		t.Shape = append(t.Shape, int64(n))
	}
	t.Offset, t.Size = h.Size+int64(begin), int64(end-begin)
	return t, nil
}

// object reads one JSON object and calls value for each key, with d before the key's value.
func object(d *json.Decoder, value func(key string) error) error {
	if tok, err := d.Token(); err != nil {
		return err
	} else if tok != json.Delim('{') {
		return fmt.Errorf("%v where an object should be", tok)
	}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		if err := value(tok.(string)); err != nil { // a key of an object is a string, or Token fails
			return err
		}
	}
	_, err := d.Token()
	return err
}

// cover checks that the tensors fill the file from the header to its end, each byte once.
func (h *Header) cover(size int64) error {
	slices.SortFunc(h.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size))
	})
	at := h.Size
	for _, t := range h.Tensors {
		if t.Offset != at {
			return fmt.Errorf("tensor %q begins at byte %d, the one before it ends at %d", clip(t.Name), t.Offset, at)
		}
		at += t.Size
	}
	if at != size {
		return fmt.Errorf("the tensors end at byte %d, the file at %d", at, size)
	}
	return nil
}

// bitsOf is the width of each type of the format.
var bitsOf = map[string]uint64{
	"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
	"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}

// numBytes returns the size of a tensor, whole bytes only.
func numBytes(dtype string, shape []uint64) (uint64, error) {
	width, ok := bitsOf[dtype]
	if !ok {
		return 0, fmt.Errorf("unknown dtype %q", clip(dtype))
	}
	n := width
	for _, d := range shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 || lo > math.MaxInt64 || d > math.MaxInt64 {
			return 0, fmt.Errorf("its shape asks for more than 2⁶³-1 bits")
		}
		n = lo
	}
	if n%8 != 0 {
		return 0, fmt.Errorf("%d bits are no whole number of bytes", n)
	}
	return n / 8, nil
}

// clip bounds a name from a file before it goes into a message.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
