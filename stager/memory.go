package stager

import (
	"github.com/headstart-serving/headstart/manifest"
)

// LeastMemory is the smallest process in bytes that can stage: a part of two chunks, and room beside it.
const LeastMemory = 2*manifest.ChunkSize + roomBeside

// roomBeside is what a process needs beside its buffers, in bytes: program, runtime, connections, listings.
// 42 MiB were measured with gemma-3-1b and 8 streams.
const roomBeside = 64 << 20

// Buffers returns how many bytes of a process that may have memory bytes are for Config.Memory: three
// quarters of much, what is left of little.
func Buffers(memory int64) (int64, error) {
	if memory < LeastMemory {
		return 0, Fail(manifest.ErrInvalid, "%d MiB of memory are too little to stage: give it %d MiB or more", memory>>20, int64(LeastMemory)>>20)
	}
	return memory - max(memory/4, roomBeside), nil
}
