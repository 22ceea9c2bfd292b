package modelfs

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Opcodes, from linux include/uapi/linux/fuse.h.
const (
	opForget      = 2
	opRead        = 15
	opGetxattr    = 22
	opListxattr   = 23
	opReaddir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44
)

const (
	headerSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	// bufferSize is what the kernel wants a request to fit into when no write has more than 4 KiB; the
	// mount is read-only.
	bufferSize = 8192
	// answerSize holds any answer of a fixed size.
	answerSize = 512
	// minIdle and maxIdle bound how many threads wait for requests; between them it is one a processor.
	minIdle, maxIdle = 2, 16
)

// server answers the kernel. The library knows the protocol and gets all requests but two kinds: reads,
// which are answered from the backing file's mapping, and interrupts, which are about reads.
//
// It is not the library's own server, for two reasons. That one wants to see INIT before it serves, and
// a connection has it once; and it receives requests in memory that is new. The kernel takes a request
// off its list before it copies it, and while this process is being killed it maps no page for that: the
// reader would get EIO. So what the kernel copies to and from has its pages mapped beforehand, here and
// in the answers.
type server struct {
	fs       *FS
	protocol *fuse.ProtocolServer
	conn     int
	mostIdle int
	log      *slog.Logger
	loops    sync.WaitGroup

	mu      sync.Mutex
	idle    int // that wait for a request
	ended   bool
	reading map[uint64]chan struct{} // by the number of the request; closed when it is interrupted
}

func newServer(f *FS, conn int) *server {
	return &server{fs: f, conn: conn, mostIdle: min(max(runtime.GOMAXPROCS(0), minIdle), maxIdle), log: f.log, reading: map[uint64]chan struct{}{},
		protocol: fuse.NewProtocolServer(&kernel{RawFileSystem: fuse.NewDefaultRawFileSystem(), FS: f}, &fuse.MountOptions{
			Name:                     "headstart",
			MaxWrite:                 maxRequest, // and so the size of a read
			MaxBackground:            background,
			ExplicitDataCacheControl: true, // bytes never change
			Logger:                   slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
		})}
}

// greet returns the answer to INIT.
func (s *server) greet(init []byte) ([]byte, error) {
	if _, err := readInit(init); err != nil {
		return nil, err
	}
	answer := make([]byte, answerSize)
	n, code := s.protocol.HandleRequest([][]byte{init}, [][]byte{answer})
	if !code.Ok() || n < headerSize+int(unsafe.Sizeof(fuse.InitOut{})) {
		return nil, errors.New("the kernel's INIT was not understood")
	}
	if failed := int32(binary.NativeEndian.Uint32(answer[4:])); failed != 0 {
		return nil, syscall.Errno(-failed)
	}
	out := (*fuse.InitOut)(unsafe.Pointer(&answer[headerSize]))
	out.MaxWrite = 4096 // see bufferSize
	return answer[:n], nil
}

// readInit looks into the kernel's INIT. Linux before 5.17 sends its first part only.
func readInit(init []byte) (*fuse.InitIn, error) {
	in := &fuse.InitIn{}
	if len(init) < int(unsafe.Offsetof(in.Flags2)) {
		return nil, errors.New("the kernel's INIT is too short")
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(in)), unsafe.Sizeof(*in)), init)
	return in, nil
}

// serve answers until the connection has ended.
func (s *server) serve() {
	s.loops.Add(1)
	s.loop()
	s.loops.Wait()
}

// loop takes requests and answers each before it takes the next. Whoever takes one while nobody else
// waits for more starts another loop, so a request that waits for bytes holds up no other.
func (s *server) loop() {
	defer s.loops.Done()
	buffer := make([]byte, bufferSize)
	clear(buffer) // maps its pages; memory that is new has none
	for s.enter() {
		n, err := unix.Read(s.conn, buffer)
		alone := s.leave()
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN): // ENOENT: its reader has gone
			continue
		case err != nil:
			s.end(err)
			return
		}
		in := (*fuse.InHeader)(unsafe.Pointer(&buffer[0]))
		if alone && in.Opcode != opForget && in.Opcode != opBatchForget { // of which there may be thousands, none of which waits
			s.loops.Add(1)
			go s.loop()
		}
		s.handle(in, buffer[:n])
	}
}

// enter reports whether one more may wait for a request.
func (s *server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.idle >= s.mostIdle {
		return false
	}
	s.idle++
	return true
}

// leave reports whether nobody waits for a request any more.
func (s *server) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle--
	return s.idle == 0
}

// end wakes the reads that wait: nobody is there to have their bytes.
func (s *server) end(err error) {
	if !errors.Is(err, unix.ENODEV) {
		s.log.Error("the kernel's requests cannot be read any more", "dir", s.fs.dir, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for number, interrupted := range s.reading {
		close(interrupted)
		delete(s.reading, number)
	}
}

// handle answers one request.
func (s *server) handle(in *fuse.InHeader, request []byte) {
	switch in.Opcode {
	case opRead:
		s.read((*fuse.ReadIn)(unsafe.Pointer(in)))
		return
	case opInterrupt:
		if number := (*fuse.InterruptIn)(unsafe.Pointer(in)).Unique; !s.interrupt(number) {
			// It was taken by somebody who has not noted it yet, or it has ended. The kernel knows which,
			// and asks again.
			s.write(in, header(in.Unique, -int32(syscall.EAGAIN), 0))
		}
		return
	}
	answer := make([]byte, answerSize+room(in))
	n, code := s.protocol.HandleRequest([][]byte{request}, [][]byte{answer})
	if !code.Ok() {
		answer, n = header(in.Unique, -int32(syscall.EIO), 0), headerSize
	}
	if n > 0 {
		s.write(in, answer[:n])
	}
}

// room returns how many bytes a request wants at most, where it says so.
func room(in *fuse.InHeader) int {
	switch in.Opcode {
	case opReaddir, opReaddirplus:
		return int((*fuse.ReadIn)(unsafe.Pointer(in)).Size)
	case opGetxattr, opListxattr:
		return int((*fuse.GetXAttrIn)(unsafe.Pointer(in)).Size)
	case opIoctl:
		return int((*fuse.IoctlIn)(unsafe.Pointer(in)).OutSize)
	}
	return 0
}

func (s *server) read(in *fuse.ReadIn) {
	interrupted := make(chan struct{})
	s.mu.Lock()
	if s.ended {
		close(interrupted)
	} else {
		s.reading[in.Unique] = interrupted
	}
	s.mu.Unlock()
	data, errno := s.fs.read(interrupted, in)
	s.mu.Lock()
	delete(s.reading, in.Unique)
	s.mu.Unlock()
	s.write(&in.InHeader, header(in.Unique, -int32(errno), len(data)), data)
}

// interrupt wakes a read, once.
func (s *server) interrupt(number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	interrupted := s.reading[number]
	if interrupted == nil {
		return false
	}
	select {
	case <-interrupted:
	default:
		close(interrupted)
	}
	return true
}

// header begins an answer of n bytes to the request of that number. The code is 0 or a negative errno.
func header(number uint64, code int32, n int) []byte {
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, headerSize), uint32(headerSize+n))
	b = binary.NativeEndian.AppendUint32(b, uint32(code))
	return binary.NativeEndian.AppendUint64(b, number)
}

// write gives the kernel an answer.
func (s *server) write(in *fuse.InHeader, answer ...[]byte) {
	for {
		_, err := unix.Writev(s.conn, answer)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV): // whoever asked has gone
			return
		case !errors.Is(err, unix.EINTR):
			s.log.Warn("the kernel does not take an answer", "dir", s.fs.dir, "opcode", in.Opcode, "err", err)
			return
		}
	}
}

// register gives the kernel a backing file and returns its number there.
func (s *server) register(fd int) (int32, error) {
	const backingOpen = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.conn), backingOpen, uintptr(unsafe.Pointer(&fuse.BackingMap{Fd: int32(fd)})))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}
