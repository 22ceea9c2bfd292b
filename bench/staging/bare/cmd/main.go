// Command cmd runs the bare loop as a process of its own, so that what it costs can be compared with
// what `headstart stage` costs. It prints a JSON object.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/headstart-serving/headstart/bench/staging/bare"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := bare.Config{Hub: os.Getenv("HF_ENDPOINT"), Bucket: os.Getenv("STORAGE_EMULATOR_HOST")}
	flag.StringVar(&c.Name, "bucket", "models", "`NAME` of the bucket")
	flag.IntVar(&c.Parts, "parts", 0, "`N` parts in flight; 0 is 8")
	flag.Parse()
	c.Repo = flag.Arg(0)
	if c.Repo == "" || c.Hub == "" || c.Bucket == "" {
		return errors.New("give a repository, and HF_ENDPOINT and STORAGE_EMULATOR_HOST in the environment")
	}
	r, err := bare.Copy(ctx, c)
	if err != nil {
		return err
	}
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"bytes": r.Bytes, "ranges": r.Ranges, "seconds": r.Elapsed.Seconds(),
		"cpu_seconds": float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9, "rss_bytes": used.Maxrss << 10,
	})
}
