package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// The exit codes. Scripts rely on them: they are documented in the README and do not change.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitAccess      = 3
	exitNotFound    = 4
	exitMismatch    = 5
	exitSpace       = 6
	exitConflict    = 7
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
    0  done
    1  failed for a reason that has no code of its own (often the network: try again)
    2  wrong usage
    3  access denied: token, licence, permission
    4  not found: repository, revision, bucket, model that is not staged
    5  what arrived is not what was promised: checksum, size, name, format
    6  no room, quota or rate limit used up, or the place cannot hold models: read-only, unfit file system
    7  in the way: the target or the directory is in use or occupied, an object is retained
  130  interrupted, by Ctrl-C or SIGTERM; run it again to go on`

// usageError is an error in how the command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// inTheWay is an error about something that is taken.
type inTheWay struct{ error }

func (e inTheWay) Unwrap() error { return syscall.EBUSY }

// said is the exit code of a child that has said why.
type said struct{ code int }

func (e said) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// exitCode is the one place where errors become exit codes.
func exitCode(ctx context.Context, err error) int {
	var usage usageError
	var mismatch *manifest.MismatchError
	var child said
	switch {
	case errors.As(err, &child):
		return child.code
	case errors.As(err, &usage), errors.Is(err, stager.ErrSelection):
		return exitUsage
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ctx.Err())):
		return exitInterrupted
	case errors.As(err, &mismatch), errors.Is(err, manifest.ErrInvalid):
		return exitMismatch
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EOPNOTSUPP):
		return exitSpace
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EBUSY):
		return exitConflict
	case errors.Is(err, fs.ErrPermission):
		return exitAccess
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	}
	return exitFailure
}

// message says what a person reads of err.
func message(ctx context.Context, err error) string {
	if exitCode(ctx, err) == exitInterrupted {
		return "interrupted; run it again to go on"
	}
	return err.Error()
}
