package child

import (
	"slices"
	"testing"
)

func TestEnvironStaysInside(t *testing.T) {
	got := Environ([]string{"PATH=/bin", "HF_TOKEN=secret", "HF_HUB_OFFLINE=1", "HUGGING_FACE_HUB_TOKEN=secret", "HEADSTART_BUCKET=gs://real",
		"STORAGE_EMULATOR_HOST=x", "GOOGLE_APPLICATION_CREDENTIALS=/key", "HOME=/root", "TMPDIR=/tmp"}, map[string]string{"HF_ENDPOINT": "http://127.0.0.1:1", "HEADSTART_BUCKET": "gs://models", "TMPDIR": "/place"})
	want := []string{"PATH=/bin", "HOME=/root", "HEADSTART_BUCKET=gs://models", "HF_ENDPOINT=http://127.0.0.1:1", "TMPDIR=/place"}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestTail(t *testing.T) {
	var x Tail
	if got := string(x.Line()); got != "" {
		t.Errorf("%q", got)
	}
	for range 5 {
		if _, err := x.Write(make([]byte, maxLine)); err != nil {
			t.Fatal(err)
		}
	}
	if len(x.kept) > 2*maxLine {
		t.Errorf("%d bytes are kept", len(x.kept))
	}
	if _, err := x.Write([]byte("\nfirst\nlast\n\n")); err != nil {
		t.Fatal(err)
	}
	if got := string(x.Line()); got != "last" {
		t.Errorf("%q", got)
	}
}
