// Package mounttest runs tests that mount things in a mount namespace of their own: whatever a test
// leaves mounted, also one that panics or is killed, is gone with its process.
package mounttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// inside tells the process that has the namespace of its own.
const inside = "HEADSTART_TEST_NAMESPACE=1"

// Main is for TestMain. It runs the tests, looks for goroutines that they leave, and does not
// return. Without root it runs them where it is: those that mount skip themselves, see [Need].
func Main(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("HEADSTART_TEST_NAMESPACE") != "" {
		goleak.VerifyTestMain(m)
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags and not Cloneflags: the former also makes every mount private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "no mount namespace for the tests, so they run without:", err)
		goleak.VerifyTestMain(m)
		return
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// Polled opens a file of a mount that the test's own process serves and polls it, so that the kernel
// learns that this is in vain and does not ask again. The Go runtime polls what it opens without giving
// up its thread: the process could wait for itself.
func Polled(t testing.TB, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
}

// ReadFile is os.ReadFile for a mount that the test's own process may serve, see [Polled].
func ReadFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var data []byte
	piece := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, piece)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return data, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		data = append(data, piece[:n]...)
	}
}

// Need skips a test where nothing can be mounted.
func Need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE: ", err)
	}
}
