package keeper

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Kept is a connection that an earlier worker served, and what that one said of it.
type Kept struct {
	ID     string
	FD     int // its taker's
	Record []byte
	Notes  [][]byte
}

// greeting is what a worker is told of its forerunners.
type greeting struct {
	Restarts int    `json:"restarts"`
	Cause    string `json:"cause"`
}

func (k *Keeper) hello() packet {
	data, err := json.Marshal(greeting{k.restarts, k.cause})
	if err != nil {
		panic("keeper: " + err.Error())
	}
	return packet{Op: opHello, Data: data, fd: -1}
}

// Parent is the worker's view of its parent. It is safe for concurrent use.
type Parent struct {
	socket   int
	Restarts int    // how often a worker was started again
	Cause    string // why the one before this one died, "" if there was none
	Kept     []Kept // the connections that are there
}

// Join takes what the parent at descriptor fd, which is [FD], has kept.
func Join(fd int) (*Parent, error) {
	unix.CloseOnExec(fd)
	p := &Parent{socket: fd}
	if err := p.join(); err != nil {
		for _, k := range p.Kept {
			unix.Close(k.FD)
		}
		return nil, errors.Join(fmt.Errorf("descriptor %d, which is to be the node's parent: %w", fd, err), unix.Close(fd))
	}
	return p, nil
}

func (p *Parent) join() error {
	for {
		m, err := receive(p.socket)
		if err != nil {
			return err
		}
		last := len(p.Kept) - 1
		switch {
		case m.Op == opHello:
			var g greeting
			if err := json.Unmarshal(m.Data, &g); err != nil {
				return err
			}
			p.Restarts, p.Cause = g.Restarts, g.Cause
		case m.Op == opKeep && m.fd >= 0:
			p.Kept = append(p.Kept, Kept{ID: m.ID, FD: m.fd, Record: m.Data})
		case m.Op == opNote && last >= 0 && p.Kept[last].ID == m.ID:
			p.Kept[last].Notes = append(p.Kept[last].Notes, m.Data)
		case m.Op == opEnd:
			return nil
		default:
			return fmt.Errorf("%q was not expected", m.Op)
		}
	}
}

// Keep gives the parent a duplicate of fd, to be given with record to the next worker. No two
// connections have the same id, ever.
func (p *Parent) Keep(id string, record []byte, fd int) error {
	return p.say(packet{Op: opKeep, ID: id, Data: record, fd: fd})
}

// Note adds to what the next worker will be told.
func (p *Parent) Note(id string, note []byte) error {
	return p.say(packet{Op: opNote, ID: id, Data: note, fd: -1})
}

// Drop makes the parent close its descriptor.
func (p *Parent) Drop(id string) error { return p.say(packet{Op: opDrop, ID: id, fd: -1}) }

// Ready says that the worker works: from now on its panic is a reason to start another one.
func (p *Parent) Ready() error { return p.say(packet{Op: opReady, fd: -1}) }

func (p *Parent) say(m packet) error {
	if err := send(p.socket, m); err != nil {
		return fmt.Errorf("telling the node's parent: %w", err)
	}
	return nil
}

// Close closes the socket. The parent keeps what it has.
func (p *Parent) Close() error { return unix.Close(p.socket) }
