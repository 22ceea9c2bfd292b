// Package bucket is an embedded Cloud Storage: the real service's JSON, XML and gRPC APIs on one port,
// over a directory, for clients that nobody here wrote.
//
// A [Server] answers reads (XML path style, JSON alt=media, HEAD, ranges), one-shot, multipart and
// resumable uploads, compose, rewrite, copy, move, list, patch, update and delete, and buckets.
// Generations, metagenerations, preconditions on every verb, and hashes in both directions behave
// as the service's do, and what its rules forbid is refused with its status, reason and message.
// Retention policies, holds, versioning and soft delete are off until a bucket is given them
// ([Policy]; new buckets of the service have a soft delete of seven days). There is no authorization
// but [Server.Deny], and no encryption with client keys: whoever asks for it gets an error instead of
// a half-truth.
//
// Layout of the directory (private): one folder a bucket, and in it
//
//	bucket.json        the bucket's own metadata
//	objects/<id>.json  an object's record; the id is the sha256 of its name, so that any name is safe
//	blobs/<id>         bytes; a record names the blobs that make up its object, in order
//	uploads/<id>.json  a resumable upload; its bytes so far are the blob that it names
//
// A record is written beside its place and renamed into it, after its bytes: a killed server loses
// what it had not answered for and nothing else. Blobs that no record names are removed at the next
// start. Nothing is fsynced: a power cut may lose what the page cache held.
package bucket

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Server serves the buckets in one directory. It is an [http.Handler] and safe for concurrent use.
type Server struct {
	// OmitMD5 leaves md5Hash out of objects whose upload declared none. The service does so for
	// composite objects only; here it takes the 1.5 CPU-seconds a gigabyte that MD5 costs out of
	// a measurement of something else. Set it before the first request.
	OmitMD5 bool

	// RewriteAtOnce is how many bytes one rewrite call copies at most; 0 is all. The service sets such a
	// limit for itself where source and destination differ in location or class. Set it before the first
	// request.
	RewriteAtOnce int64

	// Discard sums the bytes of objects and of unfinished uploads and then drops them, beyond the first
	// mebibyte of each: models of any size can be sent to a small disk. To ask for what was dropped is an
	// error; all else is as ever. An upload that this server does not finish begins anew with the next.
	// Set it before the first request.
	Discard bool

	dir  string
	lock *os.File

	mu         sync.RWMutex // guards what follows and every bucket's index
	buckets    map[string]*bucket
	generation int64 // the last one given out; microseconds, as the service's
	rewrites   map[string]*rewrite
	denied     map[string]bool

	requests requestLog
	faults   faultPlan
	buffers  sync.Pool // *[]byte of two receiveBuffers
	rpc      rpc
}

// New opens the buckets that are the folders directly below dir, which is made if it is missing.
// A directory that another Server holds is an error that wraps [syscall.EBUSY].
func New(dir string) (*Server, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("opening bucket directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("locking bucket directory: %w", err)
	}
	s := &Server{dir: dir, lock: lock, buckets: map[string]*bucket{}, rewrites: map[string]*rewrite{}}
	s.buffers.New = func() any { b := make([]byte, 2*receiveBuffer); return &b }
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another server holds it: %w", syscall.EBUSY)
		}
		return nil, fmt.Errorf("locking bucket directory %s: %w", dir, err)
	}
	if err := s.load(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("opening bucket directory %s: %w", dir, err)
	}
	return s, nil
}

// load reads every bucket from the directory.
func (s *Server) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || checkBucketName(e.Name()) != nil {
			continue
		}
		b, err := openBucket(filepath.Join(s.dir, e.Name()), e.Name())
		if err != nil {
			return fmt.Errorf("bucket %s: %w", e.Name(), err)
		}
		s.buckets[b.Name] = b
		s.generation = max(s.generation, b.newest())
	}
	return nil
}

// Close ends all gRPC calls and gives the directory back. The caller has stopped the HTTP server before.
func (s *Server) Close() error {
	s.stopRPC()
	return s.lock.Close()
}

// CreateBucket makes an empty bucket. One that exists already is an error that wraps [fs.ErrExist].
func (s *Server) CreateBucket(name string) error {
	_, err := s.createBucket(name, bucketAttributes{})
	if e, ok := errors.AsType[*apiError](err); ok && e.status == http.StatusConflict {
		return fmt.Errorf("bucket %s: %w", name, fs.ErrExist)
	}
	return err
}

// nextGeneration returns a number that is greater than any before. The caller holds mu.
func (s *Server) nextGeneration() int64 {
	s.generation = max(s.generation+1, time.Now().UnixMicro())
	return s.generation
}

// ServeHTTP answers one request to the JSON and XML APIs, or all calls of one gRPC connection.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if isPreface(r) {
		s.serveHTTP2(w)
		return
	}
	rt, routeErr := findRoute(r)
	rec := &recorder{ResponseWriter: w}
	done := s.requests.begin(r, rt, rec)
	defer done()
	w.Header().Set("Server", "UploadServer")
	err := routeErr
	if err == nil && (r.Header.Get("X-Goog-Encryption-Algorithm") != "" || r.Header.Get("X-Goog-Copy-Source-Encryption-Algorithm") != "") {
		err = errUnsupported("encryption keys of the client")
	}
	if err == nil {
		err = s.permit(rt)
	}
	if err == nil {
		err = s.faults.apply(rec, r, rt, func(w http.ResponseWriter, r *http.Request) error {
			return rt.serve(s, w, r, rt)
		})
	}
	if err != nil && !rec.wroteHeader {
		writeError(rec, r, rt, err)
	}
}
