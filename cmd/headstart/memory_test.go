package main

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512MiB": 512 << 20, "512Mi": 512 << 20, "2GiB": 2 << 30, "1.5GB": 1.5e9, "7kB": 7000, "3k": 3000, "10B": 10,
		"1Ti": 1 << 40, "2T": 2e12, "5 MiB": 5 << 20, "0.5Gi": 1 << 29,
	} {
		var s size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q: %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "-1MiB", "1e3", "0x10", "inf", "NaN", "1Pi", "1 2", "9999999999999999999", "9999999TiB", "1mb", "1_000", "GB"} {
		var s size
		if err := s.Set(text); err == nil {
			t.Errorf("%q: %d", text, s)
		}
	}
	for n, want := range map[int64]string{512 << 20: "512MiB", 1.5e9: "1500000000"} {
		if s := size(n); s.String() != want {
			t.Errorf("%d: %s", n, s.String())
		}
	}
}
