package gemma

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"math"
	"slices"
	"testing"
)

// Conversion is checked against the definition: of the two neighbours the nearer, of two as near the even one.
func TestBfloat16(t *testing.T) {
	for bits, want := range map[uint32]uint16{
		0x3F800000: 0x3F80, 0x3F807FFF: 0x3F80, 0x3F808000: 0x3F80, 0x3F808001: 0x3F81,
		0x3F818000: 0x3F82, 0x3FFFFFFF: 0x4000, 0xBF808001: 0xBF81, 0: 0,
	} {
		if got := bfloat16(math.Float32frombits(bits)); got != want {
			t.Errorf("%08x became %04x, want %04x", bits, got, want)
		}
	}
}

// The pool is part of what is frozen. Were it computed a little differently on another machine, this would tell
// before a digest of a whole file does.
func TestPoolIsFrozen(t *testing.T) {
	sum := sha256.Sum256(newPool(quantiles(poolValues), 0, 0.02).bytes)
	const want = "fc74cbfe50b6e59b"
	if got := hex.EncodeToString(sum[:8]); got != want {
		t.Errorf("pool %s, want %s", got, want)
	}
}

// weights reads the first MiB, or all, of a tensor of the 270m model as numbers.
func weights(t *testing.T, name string) []float64 {
	t.Helper()
	r := repo(t, "270m", 0)
	entries, data := header(t, r, "model.safetensors")
	e, ok := entries[name]
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	b := make([]byte, min(e.Place[1]-e.Place[0], 1<<20))
	readAt(t, r, "model.safetensors", b, data+e.Place[0])
	w := make([]float64, 0, len(b)/2)
	for ; len(b) > 0; b = b[2:] {
		w = append(w, float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b))<<16)))
	}
	return w
}

// moments returns mean, deviation, skewness and kurtosis.
func moments(w []float64) (mean, std, skew, kurt float64) {
	n := float64(len(w))
	for _, x := range w {
		mean += x / n
	}
	var m2, m3, m4 float64
	for _, x := range w {
		d := x - mean
		m2, m3, m4 = m2+d*d/n, m3+d*d*d/n, m4+d*d*d*d/n
	}
	std = math.Sqrt(m2)
	return mean, std, m3 / (m2 * std), m4 / (m2 * m2)
}

func TestDistribution(t *testing.T) {
	for _, test := range []struct {
		name      string
		mean, std float64
		loose     float64 // tolerance, in deviations: the short tensors are small samples
	}{
		{"model.embed_tokens.weight", 0, 0.5 / math.Sqrt(640), 0.01},
		{"model.layers.3.mlp.up_proj.weight", 0, 0.02, 0.01},
		{"model.layers.3.self_attn.q_proj.weight", 0, 0.02, 0.01},
		{"model.layers.3.post_attention_layernorm.weight", -0.7, 0.05, 0.2},
		{"model.layers.3.input_layernorm.weight", 0, 0.05, 0.2},
	} {
		mean, std, skew, kurt := moments(weights(t, test.name))
		if math.Abs(mean-test.mean) > test.loose*test.std || math.Abs(std/test.std-1) > test.loose {
			t.Errorf("%s: mean %.4f deviation %.4f, want %.4f and %.4f", test.name, mean, std, test.mean, test.std)
		}
		if math.Abs(skew) > 2*test.loose || math.Abs(kurt-3) > 5*test.loose {
			t.Errorf("%s: skewness %.3f kurtosis %.3f, want 0 and 3", test.name, skew, kurt)
		}
	}
}

// Each bit that noise flips is set half of the time, and does not follow the same bit of the value 32 bytes before,
// which comes from the same generator.
func TestNoiseBits(t *testing.T) {
	b := make([]byte, 4<<20)
	readAt(t, repo(t, "270m", 7), "model.safetensors", b, 64<<20)
	values := make([]uint16, len(b)/2)
	for i := range values {
		values[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	for _, bit := range []int{0, 1, 2, 15} {
		ones, same := 0, 0
		for i, v := range values {
			ones += int(v >> bit & 1)
			if i >= 16 && (v^values[i-16])>>bit&1 == 0 {
				same++
			}
		}
		for what, n := range map[string]int{"set": ones, "as before": same} {
			// Five standard errors of a fair coin.
			if off := math.Abs(float64(n)/float64(len(values)) - 0.5); off > 2.5/math.Sqrt(float64(len(values))) {
				t.Errorf("bit %d is %s in %d of %d values", bit, what, n, len(values))
			}
		}
	}
}

// Compressors find no more in it than in trained weights, of which about a third can be saved: the exponents.
func TestCompression(t *testing.T) {
	b := make([]byte, 8<<20)
	readAt(t, repo(t, "1b", 0), "model.safetensors", b, 1<<30)
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if ratio := float64(out.Len()) / float64(len(b)); ratio < 0.7 {
		t.Errorf("compressed to %.2f of its size", ratio)
	}
}

// No two pages of a file are alike, whatever tensor or seed they belong to.
func TestBlocksDiffer(t *testing.T) {
	seen := map[uint64]bool{}
	seed := maphash.MakeSeed()
	buf := make([]byte, 1<<20)
	pages := 0
	for _, r := range []*Repo{repo(t, "270m", 0), repo(t, "270m", 1), repo(t, "1b", 0)} {
		for off := int64(1 << 20); off < 128<<20; off += int64(len(buf)) {
			readAt(t, r, "model.safetensors", buf, off)
			for page := range slices.Chunk(buf, 4096) {
				seen[maphash.Bytes(seed, page)] = true
				pages++
			}
		}
	}
	if len(seen) != pages {
		t.Errorf("%d of %d pages are copies of others", pages-len(seen), pages)
	}
}

func BenchmarkFill(b *testing.B) {
	p := newPool(quantiles(poolValues), 0, 0.02)
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for i := 0; b.Loop(); i++ {
		for o := 0; o < len(buf); o += blockSize {
			p.fill(buf[o:o+blockSize], uint64(i+o))
		}
	}
}
