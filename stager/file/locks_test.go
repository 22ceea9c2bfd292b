package file

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
)

// TestNoLocks is a file system that refuses every lock: an error at once, and nothing is left.
func TestNoLocks(t *testing.T) {
	for _, refusal := range []error{syscall.ENOSYS, syscall.ENOLCK, syscall.EOPNOTSUPP} {
		root := t.TempDir()
		s := open(t, root)
		s.flock = func(int, int) error { return refusal }
		_, uploadErr := s.Upload(t.Context(), key, dir, 100)
		for name, err := range map[string]error{"Put": s.Put(t.Context(), key, 0, []byte("x")), "Upload": uploadErr} {
			if !errors.Is(err, syscall.EOPNOTSUPP) || !strings.Contains(err.Error(), "no file locks") {
				t.Errorf("%v: %s: %v", refusal, name, err)
			}
		}
		if left := tree(t, root); left != "" {
			t.Errorf("%v: left is %s", refusal, left)
		}
		s.flock = open(t, root).flock
		must(t, s.Put(t.Context(), key, 0, []byte("x")))
		s.flock = func(int, int) error { return refusal }
		_, version, err := s.Get(t.Context(), key, 10)
		must(t, err)
		if err := s.Put(t.Context(), key, version, []byte("y")); !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Errorf("%v: replacing: %v", refusal, err)
		}
	}
}

// TestPutIsCancelled meets a sweeper at each of its files.
func TestPutIsCancelled(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	s.flock = func(int, int) error {
		if tries++; tries == 3 {
			cancel()
		}
		return syscall.EWOULDBLOCK
	}
	if err := s.Put(ctx, key, 0, []byte("x")); !errors.Is(err, context.Canceled) || tries != 3 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

// TestInterruptedReservation is what a signal does to a call that takes long.
func TestInterruptedReservation(t *testing.T) {
	s := open(t, t.TempDir())
	calls := 0
	real := s.fallocate
	s.fallocate = func(fd int, mode uint32, off, n int64) error {
		if calls++; calls < 3 {
			return syscall.EINTR
		}
		return real(fd, mode, off, n)
	}
	u, err := s.Upload(t.Context(), key, dir, 100)
	must(t, err)
	must(t, u.Close())
	if calls != 3 {
		t.Errorf("%d calls", calls)
	}
}
