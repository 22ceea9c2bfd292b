package fetch_test

import (
	"context"
	"io"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
)

// frugal is a source that allocates nothing for a chunk.
type frugal struct {
	fetchtest.Memory
	bodies chan *frugalBody // a pool would lose some under the race detector
}

type frugalBody struct {
	rest []byte
	pool chan *frugalBody
}

func (s *frugal) Open(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	var b *frugalBody
	select {
	case b = <-s.bodies:
	default:
		b = &frugalBody{pool: s.bodies}
	}
	b.rest = s.Objects[key][off : off+n]
	return b, nil
}

func (b *frugalBody) Read(p []byte) (int, error) {
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *frugalBody) Close() error {
	b.pool <- b
	return nil
}

// A chunk costs no allocation beyond its source's: a load of a thousand more has as many.
func TestAllocs(t *testing.T) {
	allocs := func(chunks int) float64 {
		m := fetchtest.NewModel(t, "org/allocs", map[string]int{"w": chunks * chunk})
		c := openCache(t, t.TempDir())
		e := run(t, fetch.Config{Source: &frugal{Memory: fetchtest.Memory{Objects: m.Objects}, bodies: make(chan *frugalBody, 1000)}})
		return testing.AllocsPerRun(3, func() {
			entry, err := c.Entry(m.Manifest, m.Raw)
			if err != nil {
				t.Fatal(err)
			}
			wait(t, e.Start(entry))
			if err := c.Remove(entry); err != nil {
				t.Fatal(err)
			}
		})
	}
	const few, many = 64, 1064
	a, b := allocs(few), allocs(many)
	// What is made anew now and then, of which there is more on a busy machine, is far from one a chunk.
	if each := (b - a) / (many - few); each > 0.5 {
		t.Errorf("%v allocations for %d chunks, %v for %d: %.2f for each", a, few, b, many, each)
	}
}
