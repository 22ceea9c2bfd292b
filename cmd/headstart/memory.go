package main

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// size is a number of bytes on a command line: 512MiB, 512Mi as Kubernetes writes it, 1.5GB.
type size int64

var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"B", 1}, {"", 1},
}

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || !(n >= 0) || n*u.bytes >= math.MaxInt64 || strings.ContainsAny(digits, "xXpPeE_infINFaA") {
			break
		}
		*s = size(n * u.bytes)
		return nil
	}
	return errors.New("not a size: write it as 512MiB or 2GB")
}

func (s *size) String() string {
	if n := int64(*s); n%(1<<20) == 0 {
		return fmt.Sprintf("%dMiB", n>>20)
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type implements pflag.Value.
func (s *size) Type() string { return "size" }

// ofChunks returns an error if a new manifest should not divide files by s: larger chunks than its own are more
// than a stage's least memory is for.
func (s *size) ofChunks() error {
	if *s < 64<<10 || *s > manifest.ChunkSize || *s&(*s-1) != 0 {
		return fmt.Errorf("%s is not a power of two from 64KiB to 16MiB", s)
	}
	return nil
}

// programRoom is what a process has in memory that Go's runtime does not count, in bytes: the program.
const programRoom = 32 << 20

// keepWithin makes the garbage collector hold the process within memory bytes. Most of them are
// buffers that live as long as the process; without a limit it would wait for as much garbage. A lower limit
// that GOMEMLIMIT has set stays.
func keepWithin(memory int64) {
	limit := memory - programRoom
	if limit < debug.SetMemoryLimit(-1) {
		debug.SetMemoryLimit(limit)
	}
}
