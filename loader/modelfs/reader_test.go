package modelfs_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

// A page fault blocks its thread in a way the Go scheduler does not see, so whoever maps a file of
// a mount that this process serves could wait for himself. Readers are processes of their own: the
// test binary, started again.
func TestMain(m *testing.M) {
	if mode := os.Getenv("MODELFS_READER"); mode != "" {
		if err := read(mode, os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	mounttest.Main(m)
}

// read is a reader's life: it prints "ready" before it touches a byte, and then what it has read.
func read(mode string, args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	fmt.Println("ready", unix.Gettid())
	switch mode {
	case "read": // the whole file through read(2)
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		fmt.Printf("%x\n", h.Sum(nil))
	case "map": // the whole file through a mapping
		data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		fmt.Printf("%x\n", sha256.Sum256(data))
	case "each": // all pieces of a size at once, each by a read of its own
		size, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return err
		}
		all := make([]byte, st.Size())
		var group errgroup.Group
		for off := 0; off < len(all); off += size {
			group.Go(func() error {
				_, err := f.ReadAt(all[off:off+size], int64(off))
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		fmt.Printf("%x\n", sha256.Sum256(all))
	default:
		return touch(mode, f, int(st.Size()), args[1])
	}
	return nil
}

// touch reads one byte of a file that is never read ahead, while a handler for SIGUSR1 is set.
func touch(mode string, f *os.File, size int, at string) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
	off, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := unix.Madvise(data, unix.MADV_RANDOM); err != nil {
		return err
	}
	b := make([]byte, 1)
	switch mode {
	case "fault": // through the mapping
		b[0] = data[off]
	case "copy": // through the mapping, by the kernel
		var pipe [2]int
		if err := unix.Pipe(pipe[:]); err != nil {
			return err
		}
		if _, err := unix.Write(pipe[1], data[off:off+1]); err != nil {
			return err
		}
		if _, err := unix.Read(pipe[0], b); err != nil {
			return err
		}
	}
	fmt.Println(b[0])
	return nil
}

// reader is a process that reads.
type reader struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	thread int // that reads
}

// signal sends a signal to the thread that reads: one that is sent to the process may reach another.
func (r *reader) signal(sig syscall.Signal) error {
	return unix.Tgkill(r.cmd.Process.Pid, r.thread, sig)
}

// startReader returns when the reader has the file open and is about to touch it.
func startReader(t testing.TB, mode string, args ...string) *reader {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "MODELFS_READER="+mode)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	r := &reader{cmd: cmd, out: bufio.NewReader(pipe)}
	line, err := r.out.ReadString('\n')
	if _, scan := fmt.Sscanf(line, "ready %d\n", &r.thread); scan != nil {
		t.Fatalf("the reader says %q, %v", line, err)
	}
	return r
}

// result returns what the reader printed, when it has ended.
func (r *reader) result() (string, error) {
	out, err := io.ReadAll(r.out)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), r.cmd.Wait()
}
