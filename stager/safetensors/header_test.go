package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/stager/safetensors"
)

// file makes a file of a header's text and n bytes of data.
func file(text string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	return append(append(b, text...), make([]byte, n)...)
}

const two = `{"__metadata__":{"format":"pt"},` +
	`"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},` +
	`"a":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}  `

func TestReadSortsTensorsByName(t *testing.T) {
	b := file(two, 16)
	h, err := safetensors.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	start := int64(8 + len(two))
	if h.Size != start || h.Metadata["format"] != "pt" || len(h.Tensors) != 2 {
		t.Fatalf("header %+v", h)
	}
	a, bb := h.Tensors[0], h.Tensors[1]
	if a.Name != "a" || a.DType != "F32" || a.Offset != start+12 || a.Size != 4 || len(a.Shape) != 0 {
		t.Errorf("first tensor %+v", a)
	}
	if bb.Name != "b" || bb.Offset != start || bb.Size != 12 || !slices.Equal(bb.Shape, []int64{2, 3}) {
		t.Errorf("second tensor %+v", bb)
	}
}

// TestLegal has what is unusual and still allowed.
func TestLegal(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		data int
	}{
		"no tensors":          {`{}`, 0},
		"empty tensor":        {`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, 0},
		"empties at one byte": {`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"c":{"dtype":"U8","shape":[0,9],"data_offsets":[1,1]}}`, 1},
		"half bytes":          {`{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}`, 2},
		"other order of keys": {`{"a":{"data_offsets":[0,8],"shape":[1],"dtype":"I64"}}`, 8},
		"metadata null":       {`{"__metadata__":null}`, 0},
		"header not aligned":  {`{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}} `, 8},
		"FNUZ":                {`{"a":{"dtype":"F8_E4M3FNUZ","shape":[3],"data_offsets":[0,3]}}`, 3},
		"metadata last":       {`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{}}`, 1},
	} {
		b := file(c.text, c.data)
		if _, err := safetensors.Read(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIllegal(t *testing.T) {
	tensor := func(s string) string { return `{"a":` + s + `}` }
	for name, c := range map[string]struct {
		text string
		data int
		want string // in the message
	}{
		"an array":            {`[]`, 0, "begin with {"},
		"nothing":             {``, 0, "begin with {"},
		"white space first":   {` {}`, 0, "begin with {"},
		"cut off":             {`{"a":{"dtype":"U8"`, 0, "EOF"},
		"two objects":         {`{}{}`, 0, "more after"},
		"data without tensor": {`{}`, 1, "the file at"},
		"tensor twice":        {`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, `"a" stands there twice`},
		"key twice":           {tensor(`{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}`), 1, "twice"},
		"unknown key":         {tensor(`{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}`), 1, `"x"`},
		"no shape":            {tensor(`{"dtype":"U8","data_offsets":[0,1]}`), 1, "want a dtype"},
		"shape null":          {tensor(`{"dtype":"U8","shape":null,"data_offsets":[0,1]}`), 1, "want a dtype"},
		"negative shape":      {tensor(`{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}`), 1, "cannot unmarshal"},
		"one offset":          {tensor(`{"dtype":"U8","shape":[1],"data_offsets":[1]}`), 1, "want a dtype"},
		"offsets turned":      {tensor(`{"dtype":"U8","shape":[1],"data_offsets":[1,0]}`), 1, "data_offsets 1 and 0"},
		"offset past int64":   {tensor(`{"dtype":"U8","shape":[1],"data_offsets":[0,9223372036854775807]}`), 1, "data_offsets"},
		"offset of 2^64":      {tensor(`{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}`), 1, "cannot unmarshal"},
		"unknown type":        {tensor(`{"dtype":"F7","shape":[1],"data_offsets":[0,1]}`), 1, `"F7"`},
		"too few bytes":       {tensor(`{"dtype":"U16","shape":[2],"data_offsets":[0,2]}`), 2, "ask for 4"},
		"odd half bytes":      {tensor(`{"dtype":"F4","shape":[3],"data_offsets":[0,1]}`), 1, "whole number"},
		"shape overflows":     {tensor(`{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}`), 0, "2⁶³"},
		"overflows, times 0":  {tensor(`{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}`), 0, "2⁶³"},
		"hole":                {`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3, `"b" begins`},
		"overlap":             {`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3, `"b" begins`},
		"past the end":        {tensor(`{"dtype":"U8","shape":[2],"data_offsets":[0,2]}`), 1, "the file at"},
		"shape of null":       {tensor(`{"dtype":"U8","shape":[null],"data_offsets":[0,0]}`), 0, "null"},
		"offsets of null":     {tensor(`{"dtype":"U8","shape":[0],"data_offsets":[null,null]}`), 0, "null"},
		"fraction":            {tensor(`{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}`), 1, "cannot unmarshal"},
		"type null":           {tensor(`{"dtype":null,"shape":[1],"data_offsets":[0,1]}`), 1, `unknown dtype`},
		"null in a name":      {`{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, "null in its name"},
		"not UTF-8":           {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "UTF-8"},
		"metadata of null":    {`{"__metadata__":{"a":null}}`, 0, "no string"},
		"null in metadata":    {`{"__metadata__":{"a":"b\u0000"}}`, 0, "null"},
		"metadata of numbers": {`{"__metadata__":{"a":1}}`, 0, "cannot unmarshal"},
	} {
		b := file(c.text, c.data)
		_, err := safetensors.Read(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, safetensors.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// TestShort has files that end early, and lengths that lie: none may allocate what it names.
func TestShort(t *testing.T) {
	for n := range 8 {
		if _, err := safetensors.Read(bytes.NewReader(make([]byte, n)), int64(n)); !errors.Is(err, safetensors.ErrInvalid) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, length := range []uint64{1, safetensors.MaxHeader + 1, 1 << 62, 1 << 63, 1<<64 - 1} {
		b := binary.LittleEndian.AppendUint64(nil, length)
		if _, err := safetensors.Read(bytes.NewReader(b), 8); !errors.Is(err, safetensors.ErrInvalid) {
			t.Errorf("header of %d bytes: %v", length, err)
		}
	}
	b := file(two, 0)
	if _, err := safetensors.Read(bytes.NewReader(b[:20]), int64(len(b))+16); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %v", err)
	}
}

// FuzzParse: what is accepted covers the file exactly, and says the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(two), int64(16))
	f.Add([]byte(`{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}`), int64(2))
	f.Add([]byte(`{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}`), int64(0))
	f.Fuzz(func(t *testing.T, text []byte, data int64) {
		if data < 0 || data > 1<<40 {
			return
		}
		size := 8 + int64(len(text)) + data
		h, err := safetensors.Parse(text, size)
		if err != nil {
			if !errors.Is(err, safetensors.ErrInvalid) {
				t.Fatalf("error %v", err)
			}
			return
		}
		var sum int64
		again := make(map[string]any)
		for i, x := range h.Tensors {
			if i > 0 && h.Tensors[i-1].Name >= x.Name {
				t.Fatalf("%q after %q", x.Name, h.Tensors[i-1].Name)
			}
			if x.Offset < h.Size || x.Size < 0 || x.Offset+x.Size > size {
				t.Fatalf("%+v in a file of %d bytes", x, size)
			}
			sum += x.Size
			again[x.Name] = map[string]any{"dtype": x.DType, "shape": append([]int64{}, x.Shape...),
				"data_offsets": []int64{x.Offset - h.Size, x.Offset - h.Size + x.Size}}
		}
		if sum != data {
			t.Fatalf("tensors of %d bytes cover %d", sum, data)
		}
		out, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if h2, err := safetensors.Parse(out, 8+int64(len(out))+data); err != nil || len(h2.Tensors) != len(h.Tensors) {
			t.Fatalf("written again: %v", err)
		}
	})
}
