package modelfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount"
)

// Keeper remembers connections for a process that comes after this one: while it holds a duplicate
// of the descriptor, the kernel lets readers wait. What a method has returned from is remembered,
// however this process ends then.
type Keeper interface {
	// Keep remembers a connection. No two have the same id, ever.
	Keep(id string, record []byte, fd int) error
	// Note adds to what is remembered with it.
	Note(id string, note []byte) error
	// Drop forgets it.
	Drop(id string) error
}

// Kept is a connection that a Keeper has remembered.
type Kept struct {
	ID     string
	FD     int // a descriptor of it, the taker's
	Record []byte
	Notes  [][]byte
}

// nobody is a Keeper that remembers nothing: readers get an error when this process ends.
type nobody struct{}

func (nobody) Keep(string, []byte, int) error { return nil }
func (nobody) Note(string, []byte) error      { return nil }
func (nobody) Drop(string) error              { return nil }

// record is what a process needs to know of a connection that it did not begin.
type record struct {
	Dir    string `json:"dir"`
	Device uint64 `json:"device"`
	// The kernel's INIT and the answer to it, word for word.
	Request []byte `json:"request"`
	Answer  []byte `json:"answer"`
}

// note says that the kernel has a file's backing file. All opens of one inode must name the same one,
// so a later process may not register it again.
type note struct {
	File int   `json:"file"`
	ID   int32 `json:"id"`
}

// Orphan is a connection that an earlier process served and nobody serves now. Whoever touches its
// mount waits until Serve or End.
type Orphan struct {
	kept   Kept
	keep   Keeper
	log    *slog.Logger
	record record
	ids    map[int]int32 // of backing files, by file
}

// NewOrphan reads what was kept, which comes from keep.
func NewOrphan(k Kept, keep Keeper, log *slog.Logger) (*Orphan, error) {
	o := &Orphan{kept: k, keep: keep, log: log, ids: map[int]int32{}}
	err := json.Unmarshal(k.Record, &o.record)
	for _, data := range k.Notes {
		var n note
		err = errors.Join(err, json.Unmarshal(data, &n))
		o.ids[n.File] = n.ID
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("what is kept of a connection: %w", err), unix.Close(k.FD), keep.Drop(k.ID))
	}
	return o, nil
}

// Dir returns where the model was mounted.
func (o *Orphan) Dir() string { return o.record.Dir }

// Mounted reports whether it still is. If not, somebody has it open, or mounted elsewhere.
func (o *Orphan) Mounted() (bool, error) {
	p, err := mount.At(o.record.Dir)
	return p != nil && Ours(p) && p.Device == number(o.record.Device), err
}

// Dead reports whether the connection has ended.
func (o *Orphan) Dead() bool { return dead(o.kept.FD) }

// End ends the connection: whoever waits gets an error.
func (o *Orphan) End() error {
	var err error
	if !o.Dead() { // else its number may be another one's by now
		err = abort(o.record.Device)
	}
	return errors.Join(err, unix.Close(o.kept.FD), o.keep.Drop(o.kept.ID))
}

// Serve goes on where the earlier process stopped: m must have the manifest that it showed. Requests
// that were read and not answered are asked again. When it fails the connection has ended.
func (o *Orphan) Serve(m Model) (*FS, error) {
	if err := o.repeatable(); err != nil {
		return nil, errors.Join(err, o.End())
	}
	f := newFS(o.record.Dir, m, o.keep, o.log)
	f.id, f.device = o.kept.ID, o.record.Device
	for i, id := range o.ids {
		if i >= 0 && i < len(f.files) {
			f.files[i].id.Store(id)
		}
	}
	answer, err := f.connect(o.kept.FD, o.record.Request)
	if err == nil && !bytes.Equal(answer, o.record.Answer) {
		err = errors.New("an earlier headstart agreed on something else with the kernel")
	}
	if err == nil {
		err = o.again(f)
	}
	if err != nil {
		return nil, errors.Join(err, o.End())
	}
	go f.answer()
	return f, nil
}

// repeatable reports why the requests that the earlier process has taken cannot be had once more.
// Kernels before 6.9 cannot repeat them; a connection on which nobody waits does not need it.
func (o *Orphan) repeatable() error {
	in, err := readInit(o.record.Request)
	if err != nil {
		return err
	}
	if in.Flags64()&fuse.CAP_HAS_RESEND != 0 {
		return nil
	}
	n, err := outstanding(o.record.Device)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d requests were not answered, and this kernel cannot repeat them, which 6.9 and newer ones can", n)
	}
	return err
}

// again has the kernel repeat what was read and not answered, with a mark in each request's number,
// which is part of it from then on.
func (o *Orphan) again(f *FS) error {
	n, err := outstanding(f.device)
	if err != nil {
		return err
	}
	f.counters.taken.Store(n)
	if in, err := readInit(o.record.Request); err != nil || in.Flags64()&fuse.CAP_HAS_RESEND == 0 {
		return err
	}
	// A notification has its code in place of an error and no request's number.
	if _, err := unix.Write(f.server.conn, header(0, -fuse.NOTIFY_RESEND, 0)); err != nil {
		return fmt.Errorf("asking the kernel to repeat its requests: %w", err)
	}
	return nil
}
