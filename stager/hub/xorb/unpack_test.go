package xorb

import (
	"bytes"
	"io"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// unpackAll reads chunks as the format's specification says.
func unpackAll(t *testing.T, packed []byte) []byte {
	t.Helper()
	var all []byte
	for len(packed) > 0 {
		h := packed[:8]
		n, m := int(h[1])|int(h[2])<<8|int(h[3])<<16, int(h[5])|int(h[6])<<8|int(h[7])<<16
		body := packed[8:][:n]
		packed = packed[8+n:]
		if h[0] != 0 || h[4] > 2 {
			t.Fatalf("header %x", h)
		}
		if h[4] != 0 {
			plain, err := io.ReadAll(lz4.NewReader(bytes.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			body = plain
		}
		if h[4] == 2 {
			mixed := make([]byte, len(body))
			from := 0
			for plane := range 4 {
				for i := plane; i < len(body); i += 4 {
					mixed[i] = body[from]
					from++
				}
			}
			body = mixed
		}
		if len(body) != m {
			t.Fatalf("%d bytes, the header says %d", len(body), m)
		}
		all = append(all, body...)
	}
	return all
}
