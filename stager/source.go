package stager

import (
	"context"
	"io"

	"github.com/headstart-serving/headstart/manifest"
)

// Source is where models come from. It is hostile: what it says of names and sizes is checked, and
// what it sends is hashed. It retries what is worth retrying; an error that it returns is final.
// All methods are safe for concurrent use.
type Source interface {
	// Resolve turns a revision ("" is the default branch) into a commit. It is cheap: a model that is
	// staged already costs no other call.
	Resolve(ctx context.Context, repo, revision string) (Snapshot, error)
	// Files lists the files of m in any order. It fails with what a person can do about it where the
	// files may not be read, and with manifest.ErrInvalid where the listing is malformed.
	Files(ctx context.Context, m manifest.Model) ([]RemoteFile, error)
	// Open reads n > 0 bytes of f from off. The reader goes on by itself after a lost connection, and
	// ends with an error or after n bytes.
	Open(ctx context.Context, m manifest.Model, f RemoteFile, off, n int64) (io.ReadCloser, error)
}

// Snapshot is what a revision means at this moment.
type Snapshot struct {
	Model manifest.Model
	Ref   string // the branch or tag that was asked for; "" where the revision is the commit itself
}

// RemoteFile is a file of a model as the source describes it.
type RemoteFile struct {
	Path    string
	Size    int64            // bytes
	SHA256  *manifest.Digest // known for large files only
	GitSHA1 string           // git's blob name, 40 hex digits; known for small files only
}
