// Command headstart brings model weights from the Hugging Face Hub into a bucket, and from there
// to the nodes and pods that serve them, verifying every byte on the way.
//
// This package is wiring only: flags become values, values become constructors' arguments, and
// what was built runs. It is the only place where adapters meet and where errors become exit codes,
// and, but for what Google's client looks up itself, where the environment is read.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once, should the first one's clean end take too long.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], process{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	stop()
	os.Exit(code)
}
