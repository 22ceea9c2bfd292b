package modelfs

import (
	"errors"
	"log/slog"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ForgetOpens sets the counts of opens to 0.
func (f *FS) ForgetOpens() {
	f.counters.servedOpens.Store(0)
	f.counters.passthroughOpens.Store(0)
}

// MountOld is Mount on a kernel that offers no passthrough, as those before Linux 6.9.
func MountOld(dir string, m Model, log *slog.Logger) (*FS, error) {
	f := newFS(dir, m, nil, log)
	dev, err := attach(dir)
	if err != nil {
		return nil, err
	}
	init, err := request(dev)
	if err != nil {
		return nil, err
	}
	in := (*fuse.InitIn)(unsafe.Pointer(&init[0]))
	if in.Flags64()&fuse.CAP_PASSTHROUGH != 0 {
		in.Flags2 &^= fuse.CAP_PASSTHROUGH >> 32
	}
	answer, err := f.connect(dev, init)
	if err == nil {
		_, err = unix.Write(dev, answer)
	}
	if err != nil {
		return nil, err
	}
	go f.answer()
	f.device, err = device(dir)
	return f, errors.Join(err, f.tune())
}
