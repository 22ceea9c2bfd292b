package bucket

import (
	"errors"
	"fmt"
	"testing"
)

func TestParseRange(t *testing.T) {
	const unsatisfiable, whole = -1, -2
	for _, c := range []struct {
		header string
		size   int64
		start  int64 // or one of the above
		length int64
	}{
		{"bytes=0-", 10, 0, 10},
		{"bytes=0-0", 10, 0, 1},
		{"bytes=0-9", 10, 0, 10},
		{"bytes=0-10", 10, 0, 10},
		{"bytes=9-", 10, 9, 1},
		{"bytes=9-99999999999999999999", 10, 9, 1},
		{"bytes=10-", 10, unsatisfiable, 0},
		{"bytes=10-12", 10, unsatisfiable, 0},
		{"bytes=99999999999999999999-", 10, unsatisfiable, 0},
		{"bytes=-1", 10, 9, 1},
		{"bytes=-10", 10, 0, 10},
		{"bytes=-11", 10, 0, 10},
		{"bytes=-99999999999999999999", 10, 0, 10},
		{"bytes=-0", 10, unsatisfiable, 0},
		{"bytes=0-", 0, unsatisfiable, 0},
		{"bytes=-1", 0, unsatisfiable, 0},
		{"", 10, whole, 10},
		{"bytes", 10, whole, 10},
		{"bytes=", 10, whole, 10},
		{"bytes=-", 10, whole, 10},
		{"bytes=5-4", 10, whole, 10},
		{"bytes=+5-6", 10, whole, 10},
		{"bytes=a-b", 10, whole, 10},
		{"bytes=0-1,3-4", 10, whole, 10},
		{"items=0-1", 10, whole, 10},
	} {
		start, length, all, err := parseRange(c.header, c.size)
		switch {
		case c.start == unsatisfiable:
			if e, ok := errors.AsType[*apiError](err); !ok || e.status != 416 || e.size != c.size {
				t.Errorf("%q of %d: %v", c.header, c.size, err)
			}
		case err != nil:
			t.Errorf("%q of %d: %v", c.header, c.size, err)
		case all != (c.start == whole), !all && start != c.start, length != c.length:
			t.Errorf("%q of %d: %d+%d, whole %v", c.header, c.size, start, length, all)
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5", "bytes=3-4", "bytes=9-1", "bytes=1-2,3-4", "bytes=99999999999999999999-"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		start, length, whole, err := parseRange(header, size)
		if err != nil {
			return
		}
		if start < 0 || length < 0 || start+length > size || whole && length != size || !whole && length == 0 {
			t.Errorf("%q of %d: %d+%d, whole %v", header, size, start, length, whole)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 0-9/10":                 "0-9/10",
		"bytes 0-9/*":                  "0-9/-1",
		"bytes 5-9/20":                 "5-9/20",
		"bytes 0-*/*":                  "0--1/-1",
		"bytes 0-*/10":                 "0--1/10",
		"bytes */10":                   "empty/10",
		"bytes */0":                    "empty/0",
		"bytes */*":                    "empty/-1",
		"bytes  0-9/10":                "0-9/10",
		"bytes 0-10/10":                "bad",
		"bytes 9-5/10":                 "bad",
		"bytes -5/10":                  "bad",
		"bytes 0-9":                    "bad",
		"bytes=0-9/10":                 "bad",
		"bytes 0-9/-1":                 "bad",
		"bytes +0-9/10":                "bad",
		"bytes */99999999999999999999": "bad",
		"":                             "bad",
	} {
		c, err := parseContentRange(s)
		got := fmt.Sprintf("%d-%d/%d", c.first, c.last, c.total)
		if c.empty {
			got = fmt.Sprintf("empty/%d", c.total)
		}
		if err != nil {
			got = "bad"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */*", "bytes */10", "bytes 0-*/*", "bytes 5-4/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseContentRange(s)
		if err != nil {
			return
		}
		if c.first < 0 || c.total < -1 || c.last < -1 || c.last >= 0 && c.last < c.first || c.total >= 0 && c.last >= c.total || c.total > maxObjectBytes {
			t.Errorf("%q: %+v", s, c)
		}
	})
}

func FuzzFault(f *testing.F) {
	for _, s := range []string{"return-503", "return-503-after-256K", "stall-for-1s-after-128K", "return-broken-stream-after-7K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := parseFault(s); err == nil && (got.after < -1 || got.stall < forever) {
			t.Errorf("%q: %+v", s, got)
		}
	})
}

func TestParseFault(t *testing.T) {
	for _, s := range []string{"", "return", "return-", "return-200", "return-99999", "return-503-after-1", "return-503-after--1K",
		"return-broken-stream-after-K", "stall-for-s-after-1K", "stall-for-1s", "redirect-send-token-T", "return-503-after-99999999999999999999K"} {
		if f, err := parseFault(s); err == nil {
			t.Errorf("%q: %+v", s, f)
		}
	}
}
