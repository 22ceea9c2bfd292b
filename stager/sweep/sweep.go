// Package sweep removes from a bucket what is not wanted any more: commits that a person names, and what
// stages and removals left that did not end.
//
// A commit disappears as a whole: a note of what it consists of is written, its refs go, then its manifest,
// from which moment on readers find nothing, then its objects, at last the note. A removal that is killed
// is finished by the next one.
//
// What a manifest names stays, unless the manifest goes with it, and so does what nobody here has made. Stagers
// may run meanwhile. Every removal names the object that was listed, so what somebody has written since
// stays; what is left of an old stage is looked at again right before, and its manifest after it too: a
// stager that took the objects over looks for them after its commit, so that one of the two says what happened.
package sweep

import (
	"context"

	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/inventory"
)

// Bucket is what is swept.
type Bucket interface {
	inventory.Bucket
	// Put writes an object where the one at key has the given version, 0 being none, and otherwise fails
	// with fs.ErrExist.
	Put(ctx context.Context, key string, version int64, data ...[]byte) error
	// Remove removes an object if it is the one that was listed, else it fails with fs.ErrExist. It fails
	// with syscall.EBUSY where a process is at work with it. That there is none is no error.
	Remove(ctx context.Context, listed stager.Object) error
	String() string
}
