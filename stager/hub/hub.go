// Package hub serves model repositories on the wire of the Hugging Face Hub, for any client of it:
// model info, tree, paths-info, refs and resolve, with the real one's two kinds of answer for a file,
// its headers, its errors and, on demand, its faults.
//
// A [Server] is two handlers, because the Hub is two hosts: [Server.Handler] is the API, where a
// token belongs, and [Server.CDN] is where the signed URLs of large files point to, where a token
// never belongs: a request that brings one is refused and remembered. With [Config.Xet] there is a
// third, [Server.CAS], which knows tokens of its own.
//
//	s := hub.New(hub.Config{}, repo)
//	api, cdn := httptest.NewServer(s.Handler()), httptest.NewServer(s.CDN())
//	s.SetCDN(cdn.URL)
//
// It keeps nothing on disk. What it does not imitate: datasets and spaces, writing.
package hub

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Repo is a repository at one commit. It does not change and is safe for concurrent use.
type Repo interface {
	Name() string            // "google/gemma-3-270m-it"
	Commit() string          // 40 lower-case hex digits
	LastModified() time.Time // of the commit
	Files() []File           // in the order of their paths' bytes
	// Open gives random access to a file's bytes; an io.Closer is closed after each answer, and an
	// *os.File is sent by the kernel.
	Open(path string) (io.ReaderAt, error)
}

// File is one file of a repository.
type File struct {
	Path string // slash-separated, relative
	Size int64  // bytes
	LFS  bool   // large files: known by sha256, sent by the CDN
	// SHA256 is the digest of an LFS file's bytes. The first call may take as long as reading them.
	SHA256  func() ([32]byte, error)
	GitSHA1 [20]byte // of a small file, as git hashes a blob; see [GitSHA1]
}

// Finder looks for repositories that the server was not given, at the moment somebody asks for one.
type Finder interface {
	// Find returns the repository's present state; the error wraps fs.ErrNotExist when there is none.
	Find(ctx context.Context, name string) (Repo, error)
}

// Config is what a server may be told; the zero value serves everything to everybody.
type Config struct {
	Find     Finder            // nil: only the repositories given to [New] and [Server.Push]
	Policies map[string]Policy // by repository name; absent: public
	// Tokens maps bearer tokens to user names. Without any, every token is good and its user is "user".
	Tokens   map[string]string
	CDN      string        // URL of the CDN handler, see [Server.SetCDN]
	CAS      string        // URL of the CAS handler, see [Server.SetCAS]
	Xet      *Xet          // nil: LFS files are to be had from the CDN alone
	Signed   time.Duration // life of a signed URL and of a token for the CAS; 0: an hour
	PageSize int           // entries on a page of the tree; 0: 1000, and 50 with expand
	Quota    Quota
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger     // nil: none
}

// Policy is who may have a repository's files.
type Policy struct {
	Gated    string   // "auto" or "manual": metadata is public, files are for Granted only
	Private  bool     // everything is for Granted only; others are told that it does not exist
	Granted  []string // user names
	Disabled bool     // nobody gets anything
	Limited  bool     // every request is one too many: 429
}

// Server is the Hub. Its methods are safe for concurrent use.
type Server struct {
	cfg     Config
	key     []byte // signs the CDN's URLs
	quotas  quotas
	journal journal
	faults  plans
	store   store
	buffers sync.Pool // of *buffer

	mu      sync.RWMutex
	cdn     string
	cas     string
	repos   map[string]*history
	objects map[string]object // what signed URLs point to, by path
}

// New returns a server of repos. Several with one name are its commits, the last one being main.
func New(cfg Config, repos ...Repo) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Signed == 0 {
		cfg.Signed = time.Hour
	}
	s := &Server{
		cfg:     cfg,
		key:     []byte(rand.Text()),
		cdn:     cfg.CDN,
		cas:     cfg.CAS,
		store:   store{content: map[[32]byte]*content{}, files: map[string]xetFile{}},
		repos:   map[string]*history{},
		objects: map[string]object{},
	}
	s.quotas.limits = cfg.Quota.withDefaults()
	for _, r := range repos {
		s.Push(r)
	}
	return s
}

// SetCDN tells where clients reach the CDN handler: "http://127.0.0.1:8081". Without a host name
// ("http://:8081", "http://0.0.0.0:8081") it is the one under which the client reached the API.
func (s *Server) SetCDN(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cdn = url
}

// SetCAS tells where clients reach the CAS handler, as [Server.SetCDN] does for the CDN's.
func (s *Server) SetCAS(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cas = url
}

// Handler is the API's host.
func (s *Server) Handler() http.Handler { return s.record("api", http.HandlerFunc(s.serveAPI)) }

// CDN is the host that sends large files.
func (s *Server) CDN() http.Handler { return s.record("cdn", http.HandlerFunc(s.serveCDN)) }

// CAS is the host that says how files are put together, where Xet is on.
func (s *Server) CAS() http.Handler { return s.record("cas", http.HandlerFunc(s.serveCAS)) }
