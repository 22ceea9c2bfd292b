package gemma

import "testing"

func BenchmarkFill(b *testing.B) {
	p := newPool(quantiles(poolValues), 0, 0.02)
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for i := range b.N {
		for o := 0; o < len(buf); o += blockSize {
			p.fill(buf[o:o+blockSize], uint64(i*256+o/blockSize))
		}
	}
}

func BenchmarkQuantiles(b *testing.B) {
	for range b.N {
		quantiles(poolValues)
	}
}
