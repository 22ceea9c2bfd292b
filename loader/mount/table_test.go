package mount

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n" +
		"37 36 0:39 / /a\\040b\\011c\\012d\\134e\\043 ro,nosuid - fuse.headstart headstart ro,user_id=0\n" +
		"38 36 0:40 / /mnt3 rw - tmpfs  rw\n"))
	want := []Point{
		{ID: 36, Parent: 35, Device: "98:0", Root: "/mnt1", Target: "/mnt2", Options: "rw,noatime", Type: "ext3", Source: "/dev/root", Super: "rw,errors=continue"},
		{ID: 37, Parent: 36, Device: "0:39", Root: "/", Target: "/a b\tc\nd\\e#", Options: "ro,nosuid", Type: "fuse.headstart", Source: "headstart", Super: "ro,user_id=0"},
		{ID: 38, Parent: 36, Device: "0:40", Root: "/", Target: "/mnt3", Options: "rw", Type: "tmpfs", Source: "", Super: "rw"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got[0].ReadOnly() || !got[1].ReadOnly() {
		t.Error("ReadOnly")
	}
	for _, bad := range []string{"x", "1 2 3 4 5 6", "1 2 0:1 / / rw - ext4", "a 2 0:1 / / rw - ext4 s rw", "1 b 0:1 / / rw - ext4 s rw", strings.Repeat("x", maxLine+1)} {
		if got, err := Parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%.50q is %+v", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("36 35 98:0 /m\\0401 /mnt2 rw master:1 - ext3 /dev/root rw\n")
	f.Add("1 1 0:1 \\ \\4 \\40 - \\400 \\134134\n")
	f.Fuzz(func(t *testing.T, s string) {
		table, err := Parse(strings.NewReader(s))
		if err != nil {
			return
		}
		for i := range table {
			if p := top(table, table[i].Target); p == nil || p.Target != table[i].Target {
				t.Errorf("the top of %q is %+v", table[i].Target, p)
			}
		}
	})
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a`: "a", `\040`: " ", `a\040`: "a ", `\04`: `\04`, `\08a`: `\08a`, `\777`: `\777`, `\\040`: `\ `, `\134040`: `\040`} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
