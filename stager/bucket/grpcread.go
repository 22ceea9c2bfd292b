package bucket

import (
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/headstart-serving/headstart/manifest"
)

// maxReadChunk is how many of an object's bytes one message carries at most: ServiceConstants.MAX_READ_CHUNK_BYTES.
const maxReadChunk = 2 << 20

// maxReadRanges is how many ranges one message asks for at most.
const maxReadRanges = 100

// readObject answers ReadObject: a part of an object, in one direction.
func (c *call) readObject(m message) error {
	off, limit := m.number(4), m.number(5)
	rd, err := c.openObject(m, 6, 10, m.number(3), rangeText(off, limit))
	if err != nil {
		return err
	}
	defer rd.close()
	if limit < 0 {
		return errInvalid("Invalid read limit: %d", limit)
	}
	start, end, ok := span(off, limit, rd.Size)
	if !ok {
		return errRange(rd.Size)
	}
	if rd.dropped(start, end-start) {
		return errDropped(c.log.Bucket, rd.Name)
	}
	about := wire(nil).message(2, rd.checksums()).message(4, rd.wire(c.log.Bucket))
	if off != 0 || limit != 0 {
		about = about.message(3, wire(nil).number(1, start).number(2, end).number(3, rd.Size))
	}
	return c.sendRange(rd, start, end, func(p payload, _ bool) payload {
		p = p.inside(1).and(about)
		about = nil
		return p
	})
}

// bidiReadObject answers BidiReadObject: any number of parts of one object, asked for one after the other. The
// parts of one message take turns, as clients must expect.
func (c *call) bidiReadObject(m message) error {
	spec, err := m.message(1)
	if err != nil {
		return err
	}
	if _, ok := m.last(1); !ok {
		return errInvalid("The first message of a BidiReadObject stream must have a read_object_spec.")
	}
	handle, err := spec.message(13)
	if err != nil {
		return err
	}
	generation := spec.number(3)
	if h := handle.text(1); h != "" { // it stands for the generation that was read
		if generation, err = strconv.ParseInt(h, 10, 64); err != nil {
			return errInvalid("Invalid read handle.")
		}
	}
	ranges, err := readRanges(m)
	if err != nil {
		return err
	}
	asked := ""
	if len(ranges) > 0 {
		asked = rangeText(ranges[0].off, ranges[0].length)
	}
	rd, err := c.openObject(spec, 4, 8, generation, asked)
	if err != nil {
		return err
	}
	defer rd.close()
	about := wire(nil).message(7, wire(nil).text(1, itoa(rd.Generation)))
	if handle.text(1) == "" {
		about = about.message(4, rd.wire(c.log.Bucket))
	}
	if len(ranges) == 0 {
		if err := c.reply(about); err != nil {
			return err
		}
		about = nil
	}
	for {
		if err := c.sendRanges(rd, ranges, &about); err != nil {
			return err
		}
		m, err := c.receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if _, ok := m.last(1); ok {
			return errInvalid("Only the first message of a BidiReadObject stream may have a read_object_spec.")
		}
		if ranges, err = readRanges(m); err != nil {
			return err
		}
	}
}

// readRange is a part of an object that a client asks for under a name of its own.
type readRange struct{ off, length, id int64 }

func readRanges(m message) ([]readRange, error) {
	if len(m[8]) > maxReadRanges {
		return nil, errInvalid("Too many read ranges: %d.", len(m[8]))
	}
	var list []readRange
	for _, f := range m[8] {
		r, err := parseMessage(f.bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, readRange{r.number(1), r.number(2), r.number(3)})
	}
	return list, nil
}

// sendRanges sends the parts of one request, a message of each in turn. about, which goes with the first
// message, is then nil.
func (c *call) sendRanges(rd *reader, ranges []readRange, about *wire) error {
	type cursor struct{ at, end, id int64 }
	var open []cursor
	for _, r := range ranges {
		start, end, ok := span(r.off, r.length, rd.Size)
		if !ok || r.length < 0 {
			return outOfRange(r.id, rd.Size)
		}
		if rd.dropped(start, end-start) {
			return errDropped(c.log.Bucket, rd.Name)
		}
		open = append(open, cursor{start, end, r.id})
	}
	for len(open) > 0 {
		left := open[:0]
		for _, r := range open {
			end := min(r.at+maxReadChunk, r.end)
			err := c.sendRange(rd, r.at, end, func(p payload, whole bool) payload {
				at := wire(nil).number(1, r.at).number(2, int64(p.data.Len())).number(3, r.id)
				p = p.inside(1).and(wire(nil).message(2, at).flag(3, whole && end == r.end)).inside(6).and(*about)
				*about = nil
				return p
			})
			if err != nil {
				return err
			}
			if end < r.end {
				left = append(left, cursor{end, r.end, r.id})
			}
		}
		open = left
	}
	return nil
}

// span returns the bytes [start, end) that an offset and a length mean in an object; a length of 0 is all, a
// negative offset counts from the end. ok is false where the object ends before.
func span(off, length, size int64) (start, end int64, ok bool) {
	switch {
	case off > size:
		return 0, 0, false
	case off < 0:
		off = max(size+off, 0)
	}
	if length <= 0 || length > size-off {
		return off, size, true
	}
	return off, off + length, true
}

// openObject opens what a request names in its fields 1 and 2. Its conditions are the fields from first on,
// and what clients say about encryption is in the field common.
func (c *call) openObject(m message, first, common protowire.Number, generation int64, asked string) (*reader, error) {
	rt, err := c.begin(m.text(1), m.text(2), generation, asked)
	if err != nil {
		return nil, err
	}
	if f, ok := m.last(common); ok && len(f.bytes) > 0 {
		return nil, errUnsupported("encryption keys of the client")
	}
	if generation < 0 {
		return nil, errInvalid("Invalid generation: %d", generation)
	}
	softDeleted := c.method == "GetObject" && m.flag(11)
	rd, err := c.server.openObject(rt.bucket, rt.object, generation, softDeleted)
	if err != nil {
		return nil, err
	}
	cond := conditions{Generation: m.optional(first), GenerationNot: m.optional(first + 1), Metageneration: m.optional(first + 2), MetagenerationNot: m.optional(first + 3)}
	if err := cond.forRead(rd.object); err != nil {
		rd.close()
		return nil, err
	}
	return rd, nil
}

// payload is a message around bytes of an object, which are not copied into it.
type payload struct {
	head wire
	data mem.Buffer
	tail wire
}

// inside makes it a field of an outer message.
func (p payload) inside(id protowire.Number) payload {
	head := protowire.AppendTag(nil, id, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(p.head)+p.data.Len()+len(p.tail)))
	p.head = append(head, p.head...)
	return p
}

// and appends further fields.
func (p payload) and(w wire) payload {
	p.tail = append(p.tail, w...)
	return p
}

// sendRange sends bytes [at, end) of an object, in at least one message unless a fault comes first. wrap makes
// a message of a ChecksummedData; it is told whether these are the last of the bytes.
func (c *call) sendRange(rd *reader, at, end int64, wrap func(p payload, last bool) payload) error {
	for {
		n := min(end-at, maxReadChunk)
		cut := c.fault != nil && 0 <= c.fault.after && c.fault.after < n
		if cut {
			n = c.fault.after
		}
		if n > 0 || !cut {
			data, err := rd.buffer(at, n)
			if err != nil {
				return err
			}
			sum := c.spoil(data)
			p := payload{data: mem.NewBuffer(data, chunkBuffers)}.inside(1).and(wire(nil).sum(2, sum))
			if err := c.send(wrap(p, at+n == end)); err != nil {
				return err
			}
			if c.fault != nil {
				c.fault.after -= n
			}
		}
		if cut {
			if err := c.breakOff(); err != nil {
				return err
			}
		}
		if at += n; at >= end {
			return nil
		}
	}
}

// spoil returns the checksum that goes with bytes, which a fault may change: before they are summed, as on a
// disk, or behind it, as on a wire.
func (c *call) spoil(data *[]byte) uint32 {
	corrupt := c.fault != nil && c.fault.corrupt && len(*data) > 0
	if corrupt && c.fault.stored {
		(*data)[0] ^= 'A' ^ 'B'
	}
	sum := crc32.Checksum(*data, manifest.Castagnoli)
	if corrupt && !c.fault.stored {
		(*data)[0] ^= 'A' ^ 'B'
	}
	if corrupt {
		c.fault = nil
	}
	return sum
}

// breakOff is what the call's fault does between two bytes.
func (c *call) breakOff() error {
	f := c.fault
	c.fault = nil
	switch {
	case f.stalls:
		return f.pause(c.Context())
	case f.short:
		return errShort
	case f.status > 0:
		return f.answer()
	}
	return &apiError{status: http.StatusServiceUnavailable, message: "Fault injected: broken stream"}
}

// errShort ends a call as if everything had been sent.
var errShort = errors.New("ends early")

// send sends bytes of an object, whose buffer is grpc's afterwards.
func (c *call) send(p payload) error {
	c.server.requests.update(func() {
		c.log.Status = http.StatusOK
		c.log.Sent += int64(p.data.Len())
	})
	return c.SendMsg(mem.BufferSlice{mem.SliceBuffer(p.head), p.data, mem.SliceBuffer(p.tail)})
}

// chunkBuffers has buffers for one message's bytes. grpc's own pools clear what they lend.
var chunkBuffers = &bufferPool{}

type bufferPool struct{ pool sync.Pool }

// Get implements [mem.BufferPool].
func (p *bufferPool) Get(n int) *[]byte {
	b, ok := p.pool.Get().(*[]byte)
	if !ok || cap(*b) < n {
		made := make([]byte, maxReadChunk)
		b = &made
	}
	*b = (*b)[:n]
	return b
}

// Put implements [mem.BufferPool].
func (p *bufferPool) Put(b *[]byte) { p.pool.Put(b) }

// buffer returns n bytes of the object from at, at most maxReadChunk.
func (rd *reader) buffer(at, n int64) (*[]byte, error) {
	buf := chunkBuffers.Get(int(n))
	rest := *buf
	for _, p := range rd.Pieces {
		if len(rest) == 0 {
			break
		}
		if at >= p.Size {
			at -= p.Size
			continue
		}
		part := rest[:min(p.Size-at, int64(len(rest)))]
		if err := rd.readBlob(p.Blob, part, at); err != nil {
			chunkBuffers.Put(buf)
			return nil, err
		}
		rest, at = rest[len(part):], 0
	}
	return buf, nil
}

func (rd *reader) readBlob(blob string, p []byte, at int64) error {
	f, err := os.Open(rd.bucket.blobPath(blob))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(p, at)
	return err
}
