// Package memory looks after the memory that a measurement will use: whether there is room for it, and
// that it has been touched before the clock runs. A virtual machine that has not touched a page for a
// while gets it from its host only then, at a fraction of the speed of anything that is measured here:
// untouched memory shows the hypervisor.
package memory

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/headstart-serving/headstart/loader/memory"
)

// margin is how many bytes are left to the processes of the measurement.
const margin = 1 << 30

// Fits reports whether memory has room for n bytes.
func Fits(n int64) bool { return n <= Free() }

// Free returns how many bytes a measurement may take, by the machine's and by the cgroup's account; it may be negative.
func Free() int64 {
	a, err := memory.Read()
	if err != nil {
		return 0
	}
	return a.Free - margin
}

// Reserve is memory of a tmpfs that has been touched and is held until it is needed.
type Reserve struct{ path string } // of a file that fills it; "" for none

// Touch takes n bytes of the tmpfs that dir is on.
func Touch(ctx context.Context, dir string, n int64) (_ Reserve, err error) {
	f, err := os.CreateTemp(dir, "touched-")
	if err != nil {
		return Reserve{}, fmt.Errorf("touching memory: %w", err)
	}
	defer func() {
		if f.Close(); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	zeros := make([]byte, 4<<20) // written, for fallocate leaves the pages of a tmpfs untouched
	for off := int64(0); off < n; off += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return Reserve{}, err
		}
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), n-off)], off); err != nil {
			return Reserve{}, fmt.Errorf("touching memory: %w", err)
		}
	}
	return Reserve{f.Name()}, nil
}

// Release gives the memory back, at the moment when somebody else takes it.
func (r Reserve) Release() error {
	if r.path == "" {
		return nil
	}
	return os.Remove(r.path)
}
