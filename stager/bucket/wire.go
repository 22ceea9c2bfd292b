package bucket

import (
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protocol buffer that came: its fields by number, each value in order. The service's messages
// have a Go package only inside its Go client, which this server owes nothing: what is read and written of
// them is spelled out here and in grpc*.go, by the numbers of google/storage/v2/storage.proto.
type message map[protowire.Number][]field

// field is one value of a message's field: a number, or bytes.
type field struct {
	number uint64
	bytes  []byte
}

// parseMessage reads a message. Its bytes alias b.
func parseMessage(b []byte) (message, error) {
	m := message{}
	for len(b) > 0 {
		id, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, errInvalid("Malformed message.")
		}
		b = b[n:]
		var f field
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default: // none that this server reads
			n = protowire.ConsumeFieldValue(id, kind, b)
		}
		if n < 0 {
			return nil, errInvalid("Malformed message.")
		}
		m[id] = append(m[id], f)
		b = b[n:]
	}
	return m, nil
}

// last returns the value of a field that is not repeated; of several the last one counts.
func (m message) last(id protowire.Number) (f field, ok bool) {
	list := m[id]
	if len(list) == 0 {
		return field{}, false
	}
	return list[len(list)-1], true
}

func (m message) text(id protowire.Number) string {
	f, _ := m.last(id)
	return string(f.bytes)
}

func (m message) number(id protowire.Number) int64 {
	f, _ := m.last(id)
	return int64(f.number)
}

func (m message) flag(id protowire.Number) bool { return m.number(id) != 0 }

// optional is nil for a field that is not there.
func (m message) optional(id protowire.Number) *int64 {
	f, ok := m.last(id)
	if !ok {
		return nil
	}
	n := int64(f.number)
	return &n
}

// message returns a field that is a message itself; one that is not there is empty.
func (m message) message(id protowire.Number) (message, error) {
	f, _ := m.last(id)
	return parseMessage(f.bytes)
}

// wire is a protocol buffer that is being written. As in proto3, zero is left out.
type wire []byte

func (w wire) bytes(id protowire.Number, b []byte) wire {
	if len(b) == 0 {
		return w
	}
	return protowire.AppendBytes(protowire.AppendTag(w, id, protowire.BytesType), b)
}

func (w wire) text(id protowire.Number, s string) wire { return w.bytes(id, []byte(s)) }

// message appends one that is there even if it is empty.
func (w wire) message(id protowire.Number, m wire) wire {
	return protowire.AppendBytes(protowire.AppendTag(w, id, protowire.BytesType), m)
}

func (w wire) number(id protowire.Number, n int64) wire {
	if n == 0 {
		return w
	}
	return protowire.AppendVarint(protowire.AppendTag(w, id, protowire.VarintType), uint64(n))
}

func (w wire) flag(id protowire.Number, b bool) wire {
	if !b {
		return w
	}
	return w.number(id, 1)
}

// sum appends an optional fixed32, which is there even if it is zero.
func (w wire) sum(id protowire.Number, sum uint32) wire {
	return protowire.AppendFixed32(protowire.AppendTag(w, id, protowire.Fixed32Type), sum)
}

// time appends a google.protobuf.Timestamp; the zero time is left out.
func (w wire) time(id protowire.Number, t time.Time) wire {
	if t.IsZero() {
		return w
	}
	return w.message(id, wire(nil).number(1, t.Unix()).number(2, int64(t.Nanosecond())))
}

// entries appends a map of texts.
func (w wire) entries(id protowire.Number, m map[string]string) wire {
	for k, v := range m {
		w = w.message(id, wire(nil).text(1, k).text(2, v))
	}
	return w
}

// pageSize returns what a listing may hold: 0 and what is too much mean the most.
func pageSize(n int64) int {
	if n <= 0 || n > maxResults {
		return maxResults
	}
	return int(n)
}

// rangeText says a range as an HTTP header would, for the request log.
func rangeText(off, n int64) string {
	switch {
	case off == 0 && n == 0:
		return ""
	case off < 0:
		return "bytes=" + strconv.FormatInt(off, 10)
	case n <= 0 || off > math.MaxInt64-n:
		return "bytes=" + strconv.FormatInt(off, 10) + "-"
	}
	return "bytes=" + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+n-1, 10)
}
