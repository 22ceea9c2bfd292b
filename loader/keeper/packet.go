package keeper

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a packet says. To the worker go hello, then keep and note for what is kept, then end; from it
// come keep, note and drop, and ready once it does its work.
const (
	opHello = "hello"
	opEnd   = "end"
	opKeep  = "keep"
	opNote  = "note"
	opDrop  = "drop"
	opReady = "ready"
)

// packet is one message.
type packet struct {
	Op   string `json:"op"`
	ID   string `json:"id,omitempty"`
	Data []byte `json:"data,omitempty"`
	fd   int    // that goes with it, or -1
}

// maxPacket bounds a packet in bytes: a record has a path of 4096 in it, written twice over.
const maxPacket = 64 << 10

// errEnd says that the other side has closed the socket or has died.
var errEnd = errors.New("the other side has gone")

func send(socket int, p packet) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(data) > maxPacket {
		return fmt.Errorf("a packet of %d bytes is too large", len(data))
	}
	var rights []byte
	if p.fd >= 0 {
		rights = unix.UnixRights(p.fd)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Sendmsg(socket, data, rights, nil, unix.MSG_NOSIGNAL)
	}
	return err
}

func receive(socket int) (packet, error) {
	data, control := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4))
	var n, rights, flags int
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		n, rights, flags, _, err = unix.Recvmsg(socket, data, control, unix.MSG_CMSG_CLOEXEC)
	}
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
		return packet{}, errEnd
	case err != nil:
		return packet{}, err
	}
	fd, err := descriptor(control[:rights])
	if err != nil {
		return packet{}, err
	}
	p := packet{}
	err = json.Unmarshal(data[:n], &p)
	p.fd = fd
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a packet was cut off")
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return p, err
}

// descriptor returns the one that came with a packet, or -1.
func descriptor(control []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, err
	}
	return fds[0], nil // there is room for one
}

// give sends packets until one cannot be sent.
func give(socket int, packets []packet) {
	for _, p := range packets {
		if send(socket, p) != nil {
			return
		}
	}
}
