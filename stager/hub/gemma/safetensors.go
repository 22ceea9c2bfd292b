package gemma

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
)

// maxShard is how many bytes of tensors Transformers puts into one file unless told otherwise.
const maxShard = 5_000_000_000

// split deals tensors out to files as Transformers' save_pretrained does: in order, a new file when the next tensor
// would pass maxShard.
func split(list []tensor) [][]tensor {
	shards, size := [][]tensor{nil}, int64(0)
	for _, t := range list {
		last := len(shards) - 1
		if size += t.size(); size > maxShard && shards[last] != nil {
			shards, size = append(shards, nil), t.size()
			last++
		}
		shards[last] = append(shards[last], t)
	}
	return shards
}

// shardName is the name of file i of n.
func shardName(i, n int) string {
	if n == 1 {
		return "model.safetensors"
	}
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n)
}

// A layout is what a safetensors file looks like: a header, and tensors at their places behind it.
type layout struct {
	header  []byte // the first bytes of the file: length and JSON
	tensors []tensor
	size    int64 // of the file
}

// newLayout lays tensors out as the safetensors library does: by name, all being of one type, without gaps; a
// header of compact JSON, padded with spaces to a multiple of 8 bytes.
func newLayout(list []tensor) layout {
	slices.SortFunc(list, func(a, b tensor) int { return cmp.Compare(a.name, b.name) })
	header := append(make([]byte, 8), `{"__metadata__":{"format":"pt"}`...)
	var end int64
	for i := range list {
		t := &list[i]
		t.begin, t.end = end, end+t.size()
		end = t.end
		shape, _ := json.Marshal(t.shape) // integers cannot fail
		header = fmt.Appendf(header, `,%q:{"dtype":"BF16","shape":%s,"data_offsets":[%d,%d]}`,
			t.name, shape, t.begin, t.end)
	}
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-8))
	return layout{header, list, int64(len(header)) + end}
}

// A shard is a safetensors file that is made while it is read. It is immutable and safe for concurrent use.
type shard struct {
	header   []byte
	sections []section
	size     int64
}

// A section is a tensor's place in a shard, in bytes from the end of the header, and what fills it.
type section struct {
	begin, end int64
	key        uint64
	pool       *pool
}

// newShard fills a layout. key makes a number of a tensor's name.
func newShard(l layout, pools *pools, key func(name string) uint64) *shard {
	s := &shard{header: l.header, size: l.size}
	for _, t := range l.tensors {
		s.sections = append(s.sections, section{t.begin, t.end, key(t.name), pools.get(t.distribution())})
	}
	return s
}

// ReadAt implements io.ReaderAt.
func (s *shard) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("gemma: read at negative offset %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	if left := s.size - off; int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	n = len(p)
	if off < int64(len(s.header)) {
		done := copy(p, s.header[off:])
		p, off = p[done:], off+int64(done)
	}
	off -= int64(len(s.header))
	i := sort.Search(len(s.sections), func(i int) bool { return s.sections[i].end > off })
	for ; len(p) > 0; i++ {
		t := s.sections[i]
		part := p[:min(int64(len(p)), t.end-off)]
		t.read(part, off-t.begin)
		p, off = p[len(part):], t.end
	}
	return n, err
}

// read fills p, which lies within the tensor, with its bytes from off.
func (t section) read(p []byte, off int64) {
	block := uint64(off / blockSize)
	if skip := int(off % blockSize); skip > 0 {
		var whole [blockSize]byte
		t.pool.fill(whole[:], t.blockKey(block))
		p = p[copy(p, whole[skip:]):]
		block++
	}
	for ; len(p) > 0; block++ {
		n := min(len(p), blockSize)
		t.pool.fill(p[:n], t.blockKey(block))
		p = p[n:]
	}
}

func (t section) blockKey(block uint64) uint64 { return mix(t.key ^ mix(block)) }

// pools makes a pool for each distribution that is asked for, once.
type pools struct {
	quantiles []float64
	made      map[[2]float64]*pool
}

func newPools() *pools {
	return &pools{quantiles: quantiles(poolValues), made: map[[2]float64]*pool{}}
}

func (p *pools) get(mean, std float64) *pool {
	k := [2]float64{mean, std}
	if p.made[k] == nil {
		p.made[k] = newPool(p.quantiles, mean, std)
	}
	return p.made[k]
}

// tensorKey is a number for a tensor of a model, unlike that of any other tensor, size or seed.
func tensorKey(size string, seed uint64, name string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "weights %d %s %d %s", generation, size, seed, name))
	return binary.LittleEndian.Uint64(sum[:])
}
