package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// TestExitCodes gives each class of error its code, however deep it lies.
func TestExitCodes(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		ctx  context.Context
		err  error
		want int
	}{
		{nil, usageError{errors.New("x")}, exitUsage},
		{nil, fs.ErrPermission, exitAccess},
		{nil, stager.Fail(fs.ErrNotExist, "x"), exitNotFound},
		{nil, &manifest.MismatchError{}, exitMismatch},
		{nil, manifest.ErrInvalid, exitMismatch},
		{nil, syscall.ENOSPC, exitSpace},
		{nil, syscall.EDQUOT, exitSpace}, // a quota, a rate limit, billing: see stager/gcs/refusal.go
		{nil, syscall.EROFS, exitSpace},
		{nil, fs.ErrExist, exitConflict}, // other content, a retention policy, a hold
		{nil, inTheWay{errors.New("x")}, exitConflict},
		{nil, errors.New("the network"), exitFailure},
		{nil, context.Canceled, exitFailure}, // nobody interrupted
		{cancelled, context.Canceled, exitInterrupted},
		{cancelled, fs.ErrPermission, exitAccess}, // it had failed before
	} {
		ctx := test.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		for range 2 {
			if got := exitCode(ctx, test.err); got != test.want {
				t.Errorf("%v: code %d, want %d", test.err, got, test.want)
			}
			test.err = fmt.Errorf("staging: %w", stager.Fail(test.err, "one line"))
		}
	}
}
