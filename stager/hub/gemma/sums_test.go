package gemma

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/stager/hub"
)

var update = flag.Bool("update", false, "write sums.txt again: reads 90 GB, which takes a core a minute")

// largeFiles lists the files of a size whose digests sums.txt has.
func largeFiles(t *testing.T, size string) (list []hub.File) {
	for _, f := range repo(t, size, 0).Files() {
		if f.LFS {
			list = append(list, f)
		}
	}
	return list
}

// The frozen digests are those of the bytes.
func TestSums(t *testing.T) {
	if *update {
		writeSums(t)
	}
	check := []string{"270m", "1b"}
	if testing.Short() || raceEnabled {
		check = check[:1]
		t.Log("1b is not read: in short mode and with the race detector 270m is enough")
	}
	for _, size := range sizes {
		for _, f := range largeFiles(t, size) {
			known, ok := knownSum(size + "/" + f.Path)
			if !ok {
				t.Errorf("sums.txt lacks %s/%s", size, f.Path)
			}
			if len(check) == 0 || size != check[0] && size != check[len(check)-1] {
				continue
			}
			if sum := read(t, size, f); sum != known {
				t.Errorf("%s/%s has the digest %x, sums.txt %x", size, f.Path, sum, known)
			}
			if sum, err := f.SHA256(); err != nil || sum != known {
				t.Errorf("%s/%s: SHA256 is %x, %v", size, f.Path, sum, err)
			}
		}
	}
}

// read finds a file's digest by reading it.
func read(t *testing.T, size string, f hub.File) [32]byte {
	t.Helper()
	r, err := repo(t, size, 0).Open(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := digest(r, f.Size)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func writeSums(t *testing.T) {
	t.Helper()
	var b bytes.Buffer
	for _, size := range sizes {
		for _, f := range largeFiles(t, size) {
			fmt.Fprintf(&b, "%x  %s/%s\n", read(t, size, f), size, f.Path)
		}
	}
	if err := os.WriteFile("sums.txt", b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	sums = b.String()
}

// Other seeds have other bytes, and so must not be told the frozen digests.
func TestSumsAreOfSeedZero(t *testing.T) {
	known, ok := knownSum("270m/model.safetensors")
	sum, err := file(t, repo(t, "270m", 1), "model.safetensors").SHA256()
	if !ok || err != nil || sum == known {
		t.Errorf("seed 1 has the digest %x of seed 0 (%v)", sum, err)
	}
	if _, ok := knownSum("270m/model"); ok || strings.Count(sums, "\n") != 31 {
		t.Errorf("sums.txt has %d lines", strings.Count(sums, "\n"))
	}
}
