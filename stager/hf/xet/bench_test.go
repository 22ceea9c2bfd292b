package xet

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

// BenchmarkUnpack reads bytes a little like those of bfloat16 weights from memory: what a scheme costs beside the
// transfer.
func BenchmarkUnpack(b *testing.B) {
	data := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{5}).Read(data)
	for i := 1; i < len(data); i += 2 {
		data[i] = 0x3c // as if all had one exponent: what packs well
	}
	for name, scheme := range map[string]xorb.Scheme{"plain": xorb.Plain, "lz4": xorb.LZ4, "bg4": xorb.ByteGroups} {
		b.Run(name, func(b *testing.B) {
			l := serve(nil, data, xorb.Config{Schemes: []xorb.Scheme{scheme}}).layout
			size, err := l.Size(0)
			if err != nil {
				b.Fatal(err)
			}
			x, err := l.Open(0)
			if err != nil {
				b.Fatal(err)
			}
			body := make([]byte, size)
			if _, err := x.ReadAt(body, 0); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			u, buf := newUnpacker(), make([]byte, maxChunk)
			for b.Loop() {
				s := &stream{fetch: &fetch{chunks: span{0, maxChunks}}, left: int64(len(body)), body: io.NopCloser(bytes.NewReader(body)), alive: func() {}}
				for s.left > 0 {
					h, err := s.header()
					if err == nil {
						err = s.chunk(u, h, buf[:h.length])
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(len(body))/float64(len(data)), "packed/byte")
		})
	}
}
