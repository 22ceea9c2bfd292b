package modelfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/mount/mounttest"
)

func TestTree(t *testing.T) {
	f := newFake(t, map[string]int64{"config.json": 7, "empty": 0, "model-10.bin": 3, "model-2.bin": chunk + 1, "sub/deep/größe.txt": 5, "sub/a b": 1})
	_, dir := mounted(t, f)
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		paths = append(paths, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want := f.m.Files[f.index(rel)].Size; info.Size() != want || info.Mode() != 0o444 {
			t.Errorf("%s: size %d, mode %v, want %d", rel, info.Size(), info.Mode(), want)
		}
		if y := info.ModTime().UTC().Year(); y != 1980 {
			t.Errorf("%s: of the year %d", rel, y)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "config.json empty model-10.bin model-2.bin sub/a b sub/deep/größe.txt"; strings.Join(paths, " ") != want {
		t.Errorf("the tree is %q", paths)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if want := []string{"config.json", "empty", "model-2.bin", "model-10.bin", "sub"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("in the order of the folder: %q, %v; want %q", names, err, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Mode != unix.S_IFDIR|0o555 || st.Nlink != 3 {
		t.Errorf("the root: mode %o, %d links, %v", st.Mode, st.Nlink, err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(dir, &sfs); err != nil || int64(sfs.Blocks)*sfs.Bsize < f.m.Size() || sfs.Bfree != 0 || sfs.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs: %+v, %v", sfs, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "empty")); err != nil || len(got) != 0 {
		t.Errorf("an empty file: %d bytes, %v", len(got), err)
	}
}

func TestRefusals(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 7, "d/b": 7})
	_, dir := mounted(t, f)
	a := filepath.Join(dir, "a")
	for name, test := range map[string]struct {
		err  error
		want error
	}{
		"write":      {os.WriteFile(a, nil, 0), syscall.EROFS},
		"create":     {os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), syscall.EROFS},
		"remove":     {os.Remove(a), syscall.EROFS},
		"rename":     {os.Rename(a, a+"2"), syscall.EROFS},
		"mkdir":      {os.Mkdir(filepath.Join(dir, "x"), 0o755), syscall.EROFS},
		"chmod":      {os.Chmod(a, 0o777), syscall.EROFS},
		"truncate":   {os.Truncate(a, 0), syscall.EROFS},
		"symlink":    {os.Symlink("a", filepath.Join(dir, "s")), syscall.EROFS},
		"missing":    {func() error { _, err := os.Stat(filepath.Join(dir, "x")); return err }(), syscall.ENOENT},
		"not a dir":  {func() error { _, err := os.Stat(filepath.Join(a, "x")); return err }(), syscall.ENOTDIR},
		"xattr":      {func() error { _, err := unix.Getxattr(a, "user.x", nil); return err }(), syscall.ENODATA},
		"list xattr": {func() error { _, err := unix.Listxattr(a, nil); return err }(), nil},
		"O_DIRECT":   {func() error { _, err := unix.Open(a, unix.O_RDONLY|unix.O_DIRECT, 0); return err }(), syscall.EINVAL},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v, want %v", name, test.err, test.want)
		}
	}
}

// TestReadGrid reads around the edges of chunks and pages, while nothing but what is asked for comes.
func TestReadGrid(t *testing.T) {
	const size = 2*chunk + 1
	f := newFake(t, map[string]int64{"f": size})
	fsys, dir := mounted(t, f)
	for i := range f.m.Files[0].Chunks {
		f.deliver(t, 0, i)
	}
	for _, served := range []bool{true, false} {
		file, err := os.Open(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 1, 4095, 4096, chunk - 1, chunk, chunk + 1, 2*chunk - 1, 2 * chunk, size, size + 1} {
			for _, n := range []int64{0, 1, 2, 4096, chunk - 1, chunk, chunk + 1, 2 * chunk, size + 1} {
				want := f.content[0][min(off, size):min(off+n, size)]
				got := make([]byte, n)
				k, err := file.ReadAt(got, off)
				if (err != nil && err != io.EOF) || !bytes.Equal(got[:k], want) {
					t.Errorf("served %v, %d bytes at %d: %d bytes, %v", served, n, off, k, err)
				}
			}
		}
		file.Close()
	}
	if s := fsys.Stats(); s.PassthroughOpens == 0 && fsys.Passthrough() {
		t.Errorf("no open was passed through: %+v", s)
	}
}

// TestReadersWhileLoading has readers of every kind on files whose chunks come in a mixed order.
func TestReadersWhileLoading(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 40*chunk + 17, "b/c": 23 * chunk})
	_, dir := mounted(t, f)
	var readers []*reader
	var want []string
	for i := range f.m.Files {
		for _, mode := range []string{"read", "map"} {
			readers = append(readers, startReader(t, mode, filepath.Join(dir, f.m.Files[i].Path)))
			want = append(want, f.m.Files[i].SHA256.String())
		}
	}
	f.awaitWaiting(func(n int) bool { return n > 0 })
	for i := range f.m.Files {
		for c := range f.m.Files[i].Chunks {
			f.deliver(t, i, (c*7+3)%len(f.m.Files[i].Chunks))
		}
	}
	// Multiplying by 7 leaves out chunks where their number is a multiple of 7.
	for i := range f.m.Files {
		f.finish(t, i)
	}
	for i, r := range readers {
		if got, err := r.result(); err != nil || got != want[i] {
			t.Errorf("reader %d: %s, %v", i, got, err)
		}
	}
}

// TestKilledReader: a reader that waits for a page ends at once when it is killed.
func TestKilledReader(t *testing.T) {
	for _, mode := range []string{"read", "map", "fault"} {
		t.Run(mode, func(t *testing.T) {
			f := newFake(t, map[string]int64{"a": 4 * chunk})
			_, dir := mounted(t, f)
			r := startReader(t, mode, filepath.Join(dir, "a"), "0")
			f.awaitWaiting(func(n int) bool { return n > 0 })
			if err := r.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if out, err := r.result(); err == nil {
				t.Errorf("it went on: %s", out)
			}
		})
	}
	// A process that handles a signal cannot see it while the kernel waits for a page, on any file
	// system; the Go runtime handles all of them, so this reader is another program.
	t.Run("interrupt", func(t *testing.T) {
		f := newFake(t, map[string]int64{"a": 4 * chunk})
		_, dir := mounted(t, f)
		cat := exec.Command("cat", filepath.Join(dir, "a"))
		if err := cat.Start(); err != nil {
			t.Fatal(err)
		}
		f.awaitWaiting(func(n int) bool { return n > 0 })
		if err := cat.Process.Signal(syscall.SIGTERM); err != nil { // which no shell has its background ignore
			t.Fatal(err)
		}
		if err := cat.Wait(); err == nil || cat.ProcessState.Exited() {
			t.Errorf("it was not interrupted: %v", cat.ProcessState)
		}
	})
}

// TestSignalsAreNotErrors: a signal that the reader handles does not make a read fail. (The kernel
// itself repeats a page fault of user mode; in a system call EINTR would become EFAULT.)
func TestSignalsAreNotErrors(t *testing.T) {
	for _, mode := range []string{"fault", "copy"} {
		t.Run(mode, func(t *testing.T) {
			f := newFake(t, map[string]int64{"a": 4 * chunk})
			fsys, dir := mounted(t, f)
			r := startReader(t, mode, filepath.Join(dir, "a"), fmt.Sprint(chunk+5))
			f.awaitWaiting(func(n int) bool { return n > 0 })
			if err := r.signal(syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			type result struct {
				out string
				err error
			}
			ended := make(chan result, 1)
			go func() {
				out, err := r.result()
				ended <- result{out, err}
				f.change(func() { f.interrupted = 1000 })
			}()
			// The kernel repeats a fault once: what fails, fails at the second try.
			f.awaitWaiting(func(int) bool { return f.interrupted > 2 })
			f.deliver(t, 0, 1)
			if got := <-ended; got.err != nil || got.out != fmt.Sprint(f.content[0][chunk+5]) {
				t.Errorf("%+v, want %d", got, f.content[0][chunk+5])
			}
			if s := fsys.Stats(); s.Failed != 0 || s.Waited == 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestFailedLoad: when the bytes cannot come a read is EIO, and what is there is read all the same.
func TestFailedLoad(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 4 * chunk})
	fsys, dir := mounted(t, f)
	f.deliver(t, 0, 0)
	f.fail(errGone)
	file, err := os.Open(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got := make([]byte, chunk)
	if _, err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, f.content[0][:chunk]) {
		t.Errorf("what is there: %v", err)
	}
	if _, err := file.ReadAt(got, 2*chunk); !errors.Is(err, syscall.EIO) {
		t.Errorf("what is missing: %v", err)
	}
	f.finish(t, 0) // a later load succeeds
	if _, err := file.ReadAt(got, 2*chunk); err != nil || !bytes.Equal(got, f.content[0][2*chunk:3*chunk]) {
		t.Errorf("after a load that succeeded: %v", err)
	}
	if fsys.Stats().Failed == 0 {
		t.Error("not counted")
	}
}

// TestPassthrough: what is open at completion goes on being served, what is opened later is not.
func TestPassthrough(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 8 * chunk})
	fsys, dir := mounted(t, f)
	if !fsys.Passthrough() {
		t.Skip("this kernel has no passthrough")
	}
	path := filepath.Join(dir, "a")
	before, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	mapping := startReader(t, "fault", path, fmt.Sprint(3*chunk))
	f.awaitWaiting(func(n int) bool { return n > 0 })
	f.finish(t, 0)
	if out, err := mapping.result(); err != nil || out != fmt.Sprint(f.content[0][3*chunk]) {
		t.Errorf("the mapping that was there: %s, %v", out, err)
	}
	reads := fsys.Stats().Reads
	for _, mode := range []string{"read", "map"} {
		if out, err := startReader(t, mode, path).result(); err != nil || out != f.m.Files[0].SHA256.String() {
			t.Errorf("%s after completion: %s, %v", mode, out, err)
		}
	}
	if s := fsys.Stats(); s.Reads != reads || s.PassthroughOpens != 2 {
		t.Errorf("after completion the process was asked: %+v, %d reads before", s, reads)
	}
	got, err := io.ReadAll(before)
	if err != nil || !bytes.Equal(got, f.content[0]) {
		t.Errorf("the open file that was there: %v", err)
	}
	if s := fsys.Stats(); s.Reads == reads {
		t.Error("the old open file was not served: the test shows nothing")
	}
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0); err != nil {
		t.Errorf("O_DIRECT on a complete file: %v", err)
	} else {
		unix.Close(fd)
	}
}

// TestPassthroughRefused has the backing files on a stacked file system, which the kernel does not
// accept; kernels before 6.9 accept none. All of it works, by way of this process.
func TestPassthroughRefused(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 3 * chunk, "b": 3 * chunk})
	mounttest.Need(t)
	upper, work := t.TempDir(), t.TempDir()
	if err := unix.Mount("overlay", f.dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", f.dir, upper, work)); err != nil {
		t.Skip("no overlay: ", err)
	}
	t.Cleanup(func() { unix.Unmount(f.dir, unix.MNT_DETACH) })
	fsys, dir := mounted(t, f)
	for i, name := range []string{"a", "b"} {
		before, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		f.finish(t, i)
		for _, mode := range []string{"read", "map"} {
			if out, err := startReader(t, mode, filepath.Join(dir, name)).result(); err != nil || out != f.m.Files[i].SHA256.String() {
				t.Errorf("%s: %s, %v", mode, out, err)
			}
		}
		if got, err := io.ReadAll(before); err != nil || !bytes.Equal(got, f.content[i]) {
			t.Errorf("what was open before: %v", err)
		}
	}
	if s := fsys.Stats(); fsys.Passthrough() || s.PassthroughOpens != 0 || s.Failed != 0 || s.ServedOpens != 6 {
		t.Errorf("%v, %+v", fsys.Passthrough(), s)
	}
}

// TestOpensRacingCompletion opens and reads files at the moment they become complete, with older
// opens kept: no open and no read may fail.
func TestOpensRacingCompletion(t *testing.T) {
	const files, openers = 25, 6
	sizes := map[string]int64{}
	for i := range files {
		sizes[fmt.Sprintf("f%02d", i)] = 2*chunk + 5
	}
	f := newFake(t, sizes)
	fsys, dir := mounted(t, f)
	for i := range f.m.Files {
		path := filepath.Join(dir, f.m.Files[i].Path)
		f.deliver(t, i, 0)
		f.deliver(t, i, 1)
		stop := make(chan struct{})
		started := make(chan struct{}, openers)
		var group sync.WaitGroup
		for range openers {
			group.Go(func() {
				var kept []*os.File
				defer func() {
					for _, k := range kept {
						k.Close()
					}
				}()
				for n := 0; ; n++ {
					file, err := os.Open(path)
					if err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, 100)
					if _, err := file.ReadAt(got, chunk-50); err != nil || !bytes.Equal(got, f.content[i][chunk-50:chunk+50]) {
						t.Errorf("reading: %v", err)
					}
					if n%3 == 0 {
						kept = append(kept, file)
					} else {
						file.Close()
					}
					if n == 2 {
						started <- struct{}{}
					}
					select {
					case <-stop:
						if n > 5 {
							return
						}
					default:
					}
				}
			})
		}
		for range openers {
			<-started
		}
		f.deliver(t, i, 2)
		close(stop)
		group.Wait()
	}
	if s := fsys.Stats(); s.Failed != 0 || s.ServedOpens == 0 || (fsys.Passthrough() && s.PassthroughOpens == 0) {
		t.Errorf("%+v", s)
	}
}

// TestUnmountWhileLoading: a reader that is there goes on, the folder is empty at once, and nothing
// is left when the reader has gone.
func TestUnmountWhileLoading(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 4 * chunk})
	fsys, dir := mounted(t, f)
	r := startReader(t, "map", filepath.Join(dir, "a"))
	f.awaitWaiting(func(n int) bool { return n > 0 })
	if err := fsys.Unmount(); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("after unmounting: %v, %v", names, err)
	}
	select {
	case <-fsys.Done():
		t.Error("done while a reader is there")
	default:
	}
	f.finish(t, 0)
	if out, err := r.result(); err != nil || out != f.m.Files[0].SHA256.String() {
		t.Errorf("the reader: %s, %v", out, err)
	}
	<-fsys.Done()
}

// TestClose ends reads that wait, also of a mount that is not in any folder any more.
func TestClose(t *testing.T) {
	for _, detached := range []bool{false, true} {
		f := newFake(t, map[string]int64{"a": 4 * chunk})
		fsys, dir := mounted(t, f)
		var readers []*reader
		for _, mode := range []string{"read", "map", "fault"} {
			readers = append(readers, startReader(t, mode, filepath.Join(dir, "a"), "0"))
		}
		f.awaitWaiting(func(n int) bool { return n > 0 })
		if detached {
			if err := fsys.Unmount(); err != nil {
				t.Fatal(err)
			}
		}
		if err := fsys.Close(); err != nil {
			t.Fatal(err)
		}
		for _, r := range readers {
			if out, err := r.result(); err == nil {
				t.Errorf("a reader went on: %s", out)
			}
		}
	}
}

// TestCloseAfterTheEnd: the kernel gives the number of a connection that has ended to the next one.
func TestCloseAfterTheEnd(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 2 * chunk})
	f.finish(t, 0)
	first, _ := mounted(t, f)
	if err := first.Unmount(); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	_, dir := mounted(t, f)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || !bytes.Equal(got, f.content[0]) {
		t.Errorf("the next mount: %v", err)
	}
}

// TestNothingLeaks mounts, reads and unmounts often.
func TestNothingLeaks(t *testing.T) {
	f := newFake(t, map[string]int64{"a": 2 * chunk})
	f.finish(t, 0)
	once := func() {
		fsys, dir := mounted(t, f)
		if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || !bytes.Equal(got, f.content[0]) {
			t.Errorf("reading: %v", err)
		}
		if err := fsys.Unmount(); err != nil {
			t.Error(err)
		}
		<-fsys.Done()
	}
	once()
	before := descriptors(t)
	for range 20 {
		once()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
