package gemma

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// blockSize is the unit in which weights are made, in bytes: the bytes of block i of a tensor depend on
// (size, seed, tensor name, i) and nothing else, so that any range of a file can be made without what is before it.
const blockSize = 4096

// poolValues is how many values a pool holds: 128 KiB of them, so that a pool stays in a core's level 2 cache
// beside the buffer that is being filled.
const poolValues = 1 << 16

// The bits of four bfloat16 values side by side that noise may change without changing how values are distributed:
// the three lowest of the seven mantissa bits always, the sign only where values are symmetric around zero.
const (
	mantissaNoise = 0x0007_0007_0007_0007
	signNoise     = 0x8000_8000_8000_8000
)

// A pool holds normally distributed bfloat16 values of one mean and deviation. A block of a tensor is a window of the
// pool at a place that the block's key chooses, with sign and low mantissa bits flipped by a generator that
// the key seeds: 4 random bits in each value, so that neither blocks nor chunks of a file repeat.
type pool struct {
	bytes []byte // poolValues values, little-endian
	noise uint64 // the bits that may be flipped
}

// newPool scales quantiles, which have mean 0 and deviation 1, to another mean and deviation.
func newPool(quantiles []float64, mean, std float64) *pool {
	p := &pool{bytes: make([]byte, 0, 2*len(quantiles)), noise: mantissaNoise}
	if mean == 0 {
		p.noise |= signNoise
	}
	for _, q := range quantiles {
		// The conversion keeps compilers from fusing the two operations, which would round differently.
		p.bytes = binary.LittleEndian.AppendUint16(p.bytes, bfloat16(float32(mean+float64(std*q))))
	}
	return p
}

// fill writes the first len(dst) ≤ blockSize bytes of the block with this key.
//
// The race detector would look at every word and make this the slowest part of any test. What is shared here is
// never written.
//
//go:norace
func (p *pool) fill(dst []byte, key uint64) {
	if len(dst) < blockSize {
		var block [blockSize]byte
		p.fill(block[:], key)
		copy(dst, block[:])
		return
	}
	windows := uint64(len(p.bytes)-blockSize)/8 + 1
	start, _ := bits.Mul64(mix(key), windows)
	src := p.bytes[8*start:][:blockSize]
	dst = dst[:blockSize]
	// Four generators side by side: one alone would wait for its own multiplication.
	a, b, c, d := mix(key+1), mix(key+2), mix(key+3), mix(key+4)
	for len(dst) >= 32 && len(src) >= 32 {
		binary.LittleEndian.PutUint64(dst[0:8], binary.LittleEndian.Uint64(src[0:8])^(a^a>>29)&p.noise)
		binary.LittleEndian.PutUint64(dst[8:16], binary.LittleEndian.Uint64(src[8:16])^(b^b>>29)&p.noise)
		binary.LittleEndian.PutUint64(dst[16:24], binary.LittleEndian.Uint64(src[16:24])^(c^c>>29)&p.noise)
		binary.LittleEndian.PutUint64(dst[24:32], binary.LittleEndian.Uint64(src[24:32])^(d^d>>29)&p.noise)
		a, b, c, d = next(a), next(b), next(c), next(d)
		dst, src = dst[32:], src[32:]
	}
}

// next is a step of a linear congruential generator modulo 2⁶⁴ (Knuth's constants). Its low bits repeat soon; fill
// folds high ones onto them.
func next(x uint64) uint64 {
	return x*6364136223846793005 + 1442695040888963407
}

// mix spreads every bit of x over all bits of the result (the output function of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// quantiles returns the normal distribution's quantiles at n evenly spaced probabilities, in an order that looks
// random: a sample whose moments are exact. It uses no library's random numbers, which may change with a release.
func quantiles(n int) []float64 {
	q := make([]float64, n)
	for i := range q {
		q[i] = math.Sqrt2 * math.Erfinv((2*float64(i)+1)/float64(n)-1)
	}
	for i := n - 1; i > 0; i-- {
		j, _ := bits.Mul64(mix(uint64(i)), uint64(i+1))
		q[i], q[j] = q[j], q[i]
	}
	return q
}

// bfloat16 rounds a finite value to the nearest, ties to even.
func bfloat16(x float32) uint16 {
	b := math.Float32bits(x)
	return uint16((b + 0x7FFF + b>>16&1) >> 16)
}
