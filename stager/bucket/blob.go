package bucket

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"os"

	"github.com/headstart-serving/headstart/manifest"
)

// quantum is the unit in bytes in which a resumable upload keeps what came
// (https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload).
const quantum = 256 << 10

// receiveBuffer is how much is read from a connection at once: a multiple of quantum that is still
// in the processor's cache when it is summed and written.
const receiveBuffer = 2 * quantum

// newID names a blob or an upload: nobody can guess it, and it is a safe file name.
func newID() string { return rand.Text() }

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// blobWriter appends to a blob and sums what it appends.
type blobWriter struct {
	file *os.File
	size int64 // bytes so far
	crc  uint32
	md5  hash.Hash // nil when nobody wants it
	keep int64     // bytes that may be kept; a blob that grows beyond is emptied and stays empty
}

// everything is what a blob keeps unless the server discards.
const everything = math.MaxInt64

// sample is what it keeps when the server discards: records and manifests, which clients read again.
const sample = 1 << 20

func (s *Server) keep() int64 {
	if s.Discard {
		return sample
	}
	return everything
}

func (w *blobWriter) dropped() bool { return w.size > w.keep }

// write puts bytes at the blob's end, or drops them, and counts them.
func (w *blobWriter) write(b []byte) error {
	had := w.dropped()
	w.size += int64(len(b))
	switch {
	case had:
		return nil
	case w.dropped():
		return w.file.Truncate(0)
	}
	_, err := w.file.WriteAt(b, w.size-int64(len(b)))
	return err
}

// createBlob makes an empty blob.
func (b *bucket) createBlob(id string, withMD5 bool, keep int64) (*blobWriter, error) {
	f, err := os.OpenFile(b.blobPath(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	return newBlobWriter(f, withMD5, keep), nil
}

func newBlobWriter(f *os.File, withMD5 bool, keep int64) *blobWriter {
	w := &blobWriter{file: f, keep: keep}
	if withMD5 {
		w.md5 = md5.New()
	}
	return w
}

// add counts and sums bytes that the blob holds already.
func (w *blobWriter) add(b []byte) {
	w.size += int64(len(b))
	w.crc = crc32.Update(w.crc, manifest.Castagnoli, b)
	if w.md5 != nil {
		w.md5.Write(b)
	}
}

func (w *blobWriter) sums() (crc uint32, md5sum []byte) {
	if w.md5 == nil {
		return w.crc, nil
	}
	return w.crc, w.md5.Sum(nil)
}

// receive appends body. When body fails, or when it is not the last of the blob, the blob ends at a
// multiple of quantum: what came after that is dropped, as if it had not come.
func (s *Server) receive(w *blobWriter, body io.Reader, last bool) error {
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	hashing := background{hash: w.md5}
	defer hashing.wait()
	for half := 0; ; half = 1 - half {
		buf := (*buffer)[half*receiveBuffer:][:receiveBuffer]
		n, err := fill(body, buf)
		if err != nil && !(err == io.EOF && last) {
			n -= int((w.size + int64(n)) % quantum)
		}
		if n > 0 {
			if err := w.write(buf[:n]); err != nil {
				return err
			}
			w.crc = crc32.Update(w.crc, manifest.Castagnoli, buf[:n])
			hashing.write(buf[:n])
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill reads until buf is full or r ends, which is io.EOF, or fails.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	if n == len(buf) {
		return n, nil
	}
	return n, err
}

// background hashes one block while the next one is read: MD5 is slower than any network here.
type background struct {
	hash    hash.Hash // nil: nothing to do
	pending chan struct{}
}

// write adds b, which must not change until the next write or wait has returned.
func (g *background) write(b []byte) {
	g.wait()
	if g.hash == nil {
		return
	}
	if len(b) < receiveBuffer {
		g.hash.Write(b)
		return
	}
	done := make(chan struct{})
	g.pending = done
	go func() {
		defer close(done)
		g.hash.Write(b)
	}()
}

func (g *background) wait() {
	if g.pending != nil {
		<-g.pending
		g.pending = nil
	}
}
