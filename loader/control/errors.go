package control

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/headstart-serving/headstart/manifest"
)

// kinds are the classes of errors that survive the way through the socket, in the order in which
// they are looked for.
var kinds = []struct {
	name   string
	class  error
	status int
}{
	{"invalid", manifest.ErrInvalid, http.StatusUnprocessableEntity},
	{"no_space", syscall.ENOSPC, http.StatusInsufficientStorage},
	{"quota", syscall.EDQUOT, http.StatusInsufficientStorage},
	{"read_only", syscall.EROFS, http.StatusInsufficientStorage},
	{"exists", fs.ErrExist, http.StatusConflict},
	{"busy", syscall.EBUSY, http.StatusConflict},
	{"permission", fs.ErrPermission, http.StatusForbidden},
	{"not_found", fs.ErrNotExist, http.StatusNotFound},
	{"argument", fs.ErrInvalid, http.StatusBadRequest},
	{"cancelled", context.Canceled, http.StatusServiceUnavailable},
}

// Two kinds have no class to compare with.
const (
	mismatch = "mismatch"
	failed   = "failed"
)

type wireError struct {
	Kind     string                  `json:"kind"`
	Message  string                  `json:"message"`
	Mismatch *manifest.MismatchError `json:"mismatch,omitempty"`
}

// encode returns an error as it is sent, and the status to send it with.
func encode(err error) (*wireError, int) {
	w := &wireError{Kind: failed, Message: err.Error()}
	if errors.As(err, &w.Mismatch) {
		w.Kind = mismatch
		return w, http.StatusUnprocessableEntity
	}
	for _, k := range kinds {
		if errors.Is(err, k.class) {
			w.Kind = k.name
			return w, k.status
		}
	}
	return w, http.StatusInternalServerError
}

// nodeError is an error that the node had.
type nodeError struct {
	message string
	class   error
}

func (e *nodeError) Error() string { return e.message }
func (e *nodeError) Unwrap() error { return e.class }

// decode returns the error that was sent. A kind from a newer node is an error without a class.
func (w *wireError) decode() error {
	e := &nodeError{message: w.Message}
	if w.Kind == mismatch && w.Mismatch != nil {
		e.class = w.Mismatch
	}
	for _, k := range kinds {
		if k.name == w.Kind {
			e.class = k.class
		}
	}
	return e
}
