package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/bench/replay"
)

// TestReplay runs the command on a small model: verified, altered, with a list that is no list.
func TestReplay(t *testing.T) {
	dir, sums := t.TempDir(), filepath.Join(t.TempDir(), "sums")
	header := `{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}`
	weights := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header+"tensr"...)
	var list strings.Builder
	for name, b := range map[string][]byte{"config.json": []byte("{}"), "model.safetensors": weights} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "%x  %s\n", sha256.Sum256(b), name)
	}
	if err := os.WriteFile(sums, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) (int, string, string) {
		var out, said bytes.Buffer
		code := run(t.Context(), append([]string{"replay"}, args...), process{Getenv: func(string) string { return "" }, Stdout: &out, Stderr: &said})
		return code, out.String(), said.String()
	}

	code, out, said := call(dir, "--expect", sums, "--json")
	var r replay.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitOK || !r.Verified || r.Weights != 5 {
		t.Errorf("exit code %d, %s%s (%v)", code, out, said, err)
	}
	if code, out, _ := call(dir, "--expect", sums); code != exitOK || !strings.Contains(out, "all 2 files are as expected") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if code, out, _ := call(dir); code != exitOK || !strings.Contains(out, "nothing was compared") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, said := call(dir, "--expect", sums); code != exitMismatch || !strings.Contains(said, "config.json") {
		t.Errorf("an altered file: exit code %d, %s", code, said)
	}
	if code, _, said := call(dir, "--expect", filepath.Join(dir, "config.json")); code != exitMismatch || !strings.Contains(said, "line 1") {
		t.Errorf("no list: exit code %d, %s", code, said)
	}
	if code, _, _ := call(dir, "--expect", filepath.Join(dir, "none")); code != exitNotFound {
		t.Errorf("no file: exit code %d", code)
	}
	if code, _, _ := call(filepath.Join(dir, "none")); code != exitNotFound {
		t.Errorf("no directory: exit code %d", code)
	}
	if code, _, _ := call(); code != exitUsage {
		t.Errorf("no argument: exit code %d", code)
	}
}
