package manifest

import "hash/crc32"

// Castagnoli is the table of the CRC32C that Cloud Storage uses.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CombineCRC32C returns the CRC32C of A‖B from the sums of A and of B, and B's length in bytes.
//
// Appending n zero bits multiplies the remainder by xⁿ; that power is made by squaring, so the
// cost is logarithmic in sizeB.
func CombineCRC32C(a, b uint32, sizeB int64) uint32 {
	if sizeB <= 0 {
		return a
	}
	// In the reflected representation bit 31 is x⁰, so 1<<31 is one and 1<<30 is x.
	power, square := uint32(1)<<31, uint32(1)<<30
	for range 3 {
		square = multiply(square, square) // x⁸: one byte
	}
	for n := uint64(sizeB); n > 0; n >>= 1 {
		if n&1 != 0 {
			power = multiply(power, square)
		}
		square = multiply(square, square)
	}
	return multiply(power, a) ^ b
}

// multiply multiplies two polynomials modulo the Castagnoli polynomial, reflected.
func multiply(a, b uint32) uint32 {
	var p uint32
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			p ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return p
}
