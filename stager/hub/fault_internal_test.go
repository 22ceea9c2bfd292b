package hub

import "testing"

func FuzzParseFaults(f *testing.F) {
	for _, s := range []string{"return-503", "return-503-after-256K/retry-3", "stall-for-99999s-after-999999999K", "header=A:b,html-body", "size-in-tree=1e9", ",,", "x=%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fs, err := parseFaults(s)
		if err != nil {
			return
		}
		for _, one := range fs {
			if one.name == "" || one.after < -1 || (one.name == "status") != (one.status >= 400 && one.status < 600) {
				t.Errorf("%q: %+v", s, one)
			}
		}
	})
}
