package xet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
)

// Open reads n > 0 bytes from off of the file with a hash, see ValidHash. It returns when the store has said how the first of them are put together.
// alive, where it is not nil, is called whenever bytes arrive, also those that are not asked for and come before. The
// reader must be closed; it belongs to one goroutine.
func (c *Client) Open(ctx context.Context, t Token, hash string, off, n int64, alive func()) (io.ReadCloser, error) {
	if alive == nil {
		alive = func() {}
	}
	r := &reader{client: c, ctx: ctx, token: t, hash: hash, at: off, end: off + n, alive: alive}
	if u, ok := c.unpackers.Get().(*unpacker); ok {
		r.unpacker = u
	} else {
		r.unpacker = newUnpacker()
	}
	if err := r.plan(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// maxOver is how many bytes of xorbs may be read in a window without being of use. A store that cuts its ranges to the
// terms sends none; one that sends a xorb whole for each of many terms would be read for ever.
const maxOver = 512 << 20

// reader goes through the terms of a range, a window of it at a time.
type reader struct {
	*unpacker
	client *Client
	ctx    context.Context
	token  Token
	hash   string
	at     int64 // what Read returns next
	end    int64
	alive  func()

	left   int64  // bytes of the window that Read did not return yet
	skip   int64  // bytes to throw away before them
	terms  []term // from the present one on
	got    int64  // bytes of the present term that were unpacked
	begun  bool   // the present term's chunks are those that stream has next
	over   int64  // bytes of the window's xorbs that were read and not wanted
	ready  []byte // unpacked, not returned yet
	stream *stream
}

// plan asks for the next window.
func (r *reader) plan() error {
	n := min(r.end-r.at, r.client.window)
	p, err := r.client.reconstruct(r.ctx, r.token, r.hash, r.at, n)
	if err != nil {
		return err
	}
	r.alive()
	r.terms, r.skip, r.left = p.terms, p.skip, n
	r.got, r.over, r.begun = 0, 0, false
	return nil
}

func (r *reader) Read(p []byte) (int, error) {
	if r.at == r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.left == 0 {
		if err := r.plan(); err != nil {
			return 0, err
		}
	}
	n, err := r.take(p)
	r.at, r.left = r.at+int64(n), r.left-int64(n)
	if r.left == 0 {
		r.ready = nil // the rest of the last chunk was not asked for
		r.drop()
	}
	return n, err
}

// take copies what is ready, of a chunk that it unpacks first where nothing is.
func (r *reader) take(p []byte) (int, error) {
	for len(r.ready) == 0 {
		if n, err := r.next(p); n > 0 || err != nil {
			return n, err
		}
	}
	n := copy(p, r.ready[:min(int64(len(r.ready)), r.left)])
	r.ready = r.ready[n:]
	return n, nil
}

// next unpacks a chunk: into p where all of it is wanted and fits, which it says by n > 0, else it becomes ready.
func (r *reader) next(p []byte) (n int, err error) {
	t := &r.terms[0]
	if !r.begun {
		if err := r.begin(t); err != nil {
			return 0, err
		}
	}
	h, err := r.stream.header()
	if err != nil {
		return 0, err
	}
	if r.got += int64(h.length); r.got > t.length {
		return 0, malformed("the chunks of a term have more than the %d bytes that it says", t.length)
	}
	length := int64(h.length)
	if r.skip == 0 && length <= r.left && length <= int64(len(p)) {
		if err := r.stream.chunk(r.unpacker, h, p[:length]); err != nil {
			return 0, err
		}
		n = h.length
	} else {
		b := room(&r.unpacker.chunk, h.length)
		if err := r.stream.chunk(r.unpacker, h, b); err != nil {
			return 0, err
		}
		s := min(r.skip, length)
		r.skip -= s
		r.ready = b[s:]
	}
	return n, r.passed(t)
}

// passed notes that a chunk was read: the term may end with it, and the stream.
func (r *reader) passed(t *term) error {
	if r.stream.at == t.chunks.end {
		if r.got != t.length {
			return malformed("the chunks of a term have %d bytes, not the %d that it says", r.got, t.length)
		}
		r.terms, r.got, r.begun = r.terms[1:], 0, false
	}
	if r.stream.at < r.stream.fetch.chunks.end {
		return nil
	}
	s := r.stream
	r.stream = nil
	return s.end()
}

// begin brings the stream to where the term's first chunk is: the present one where it has it, else a new one.
func (r *reader) begin(t *term) error {
	if r.stream != nil && (r.stream.fetch != t.from || r.stream.at > t.chunks.start) {
		r.drop()
	}
	if r.stream == nil {
		s, err := r.client.fetch(r.ctx, t.from, r.token, r.alive)
		if err != nil {
			return err
		}
		r.stream = s
	}
	for r.stream.at < t.chunks.start {
		h, err := r.stream.header()
		if err != nil {
			return err
		}
		if r.over += int64(h.packed); r.over > r.client.maxOver {
			return malformed("the store's plan leads over more than %d bytes that it is not about", r.client.maxOver)
		}
		if err := r.stream.pass(h); err != nil {
			return err
		}
	}
	r.begun = true
	return nil
}

// drop gives up a stream whose last chunks are not wanted, and its connection.
func (r *reader) drop() {
	if r.stream != nil {
		r.stream.body.Close()
		r.stream = nil
	}
}

// Close implements io.Closer. Its error is nil.
func (r *reader) Close() error {
	r.drop()
	if r.unpacker != nil {
		r.client.unpackers.Put(r.unpacker)
		r.unpacker, r.ready = nil, nil
	}
	r.at = r.end
	return nil
}

// reconstruct asks the store how n bytes from off are put together: in version 2, or where the store does not know
// that in version 1.
func (c *Client) reconstruct(ctx context.Context, t Token, hash string, off, n int64) (plan, error) {
	if !c.first.Load() {
		p, err := c.reconstructAs(ctx, "v2", t, hash, off, n)
		var status *StatusError
		if !errors.As(err, &status) || status.Response.StatusCode != http.StatusNotFound && status.Response.StatusCode != http.StatusNotImplemented {
			return p, err
		}
	}
	p, err := c.reconstructAs(ctx, "v1", t, hash, off, n)
	if err == nil {
		c.first.Store(true)
	}
	return p, err
}

func (c *Client) reconstructAs(ctx context.Context, version string, t Token, hash string, off, n int64) (plan, error) {
	u := t.CAS.JoinPath(version, "reconstructions", hash)
	r, err := c.get(ctx, u, t.Access, off, off+n-1)
	if err != nil {
		return plan{}, err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(io.LimitReader(r.Body, maxPlan+1))
	if err != nil {
		return plan{}, fmt.Errorf("%s: %w", u.Host, err)
	}
	if len(data) > maxPlan {
		return plan{}, malformed("the store's plan of %d bytes has more than %d", n, maxPlan)
	}
	return parsePlan(data, n)
}

// stream is a connection that sends a run of chunks.
type stream struct {
	fetch *fetch
	at    int64 // the next chunk
	left  int64 // bytes
	body  io.ReadCloser
	alive func()
}

var contentRange = regexp.MustCompile(`^bytes (\d{1,19})-(\d{1,19})/(?:\d{1,19}|\*)$`)

// fetch connects for a run of chunks. The URL is its own permission: no token is sent.
func (c *Client) fetch(ctx context.Context, f *fetch, t Token, alive func()) (*stream, error) {
	if t.CAS.Scheme == "https" && f.url.Scheme != "https" {
		return nil, malformed("the store leads from https to http")
	}
	r, err := c.get(ctx, f.url, "", f.bytes.start, f.bytes.end-1)
	if err != nil {
		return nil, err
	}
	if err := checkRange(r, f); err != nil {
		r.Body.Close()
		return nil, err
	}
	alive()
	return &stream{fetch: f, at: f.chunks.start, left: f.bytes.len(), body: r.Body, alive: alive}, nil
}

// checkRange refuses other bytes than those that were asked for. A server that knows no ranges may answer with the
// whole xorb where all of it was asked for.
func checkRange(r *http.Response, f *fetch) error {
	host := r.Request.URL.Host
	if r.StatusCode == http.StatusOK {
		if f.bytes.start != 0 || r.ContentLength != f.bytes.len() {
			return malformed("%s answers a range with all it has", host)
		}
		return nil
	}
	got := contentRange.FindStringSubmatch(r.Header.Get("Content-Range"))
	if got == nil || got[1] != strconv.FormatInt(f.bytes.start, 10) || got[2] != strconv.FormatInt(f.bytes.end-1, 10) {
		return malformed("%s answers with another range (%.60q)", host, r.Header.Get("Content-Range"))
	}
	return nil
}

// Read reads no further than the range.
func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.body.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if n > 0 {
		s.alive()
	}
	return n, err
}

// header reads what stands before the next chunk, and makes sure that the chunk is all there.
func (s *stream) header() (header, error) {
	if s.left < headerSize {
		return header{}, malformed("a range of a xorb ends before its %d chunks do", s.fetch.chunks.len())
	}
	var b [headerSize]byte
	if err := full(s, b[:]); err != nil {
		return header{}, err
	}
	h, err := parseHeader(b)
	if err == nil && int64(h.packed) > s.left {
		err = malformed("a chunk of a xorb ends behind the range that has it")
	}
	return h, err
}

// chunk reads the chunk after its header.
func (s *stream) chunk(u *unpacker, h header, dst []byte) error {
	s.at++
	return u.read(s, h, dst)
}

// pass goes over the chunk after its header.
func (s *stream) pass(h header) error {
	s.at++
	_, err := io.CopyN(io.Discard, s, int64(h.packed))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// end closes a stream whose chunks were all read, and so were its bytes. Having seen the end of the body lets the
// connection be used again.
func (s *stream) end() error {
	defer s.body.Close()
	if s.left != 0 {
		return malformed("the chunks of a xorb end %d bytes before the range that has them", s.left)
	}
	var end [1]byte
	_, _ = s.body.Read(end[:])
	return nil
}
