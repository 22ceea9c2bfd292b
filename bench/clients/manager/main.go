// Command manager downloads objects with transfermanager, the parallel downloader of Google's own Go client
// for Cloud Storage: eight workers, into files.
//
//	manager PART BUCKET PREFIX DIR NAME…    objects PREFIX/NAME into DIR/NAME, in ranges of PART bytes; STORAGE_EMULATOR_HOST as the client knows it
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"cloud.google.com/go/storage"
	"cloud.google.com/go/storage/transfermanager"
)

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "usage: manager PART BUCKET PREFIX DIR NAME…")
		os.Exit(2)
	}
	part, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err == nil {
		err = download(context.Background(), part, os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

func download(ctx context.Context, part int64, bucket, prefix, dir string, names []string) (err error) {
	client, err := storage.NewClient(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	d, err := transfermanager.NewDownloader(client, transfermanager.WithWorkers(8), transfermanager.WithPartSize(part))
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close() // after WaitAndClose
		if err := d.DownloadObject(ctx, &transfermanager.DownloadObjectInput{Bucket: bucket, Object: prefix + "/" + name, Destination: f}); err != nil {
			return err
		}
	}
	results, err := d.WaitAndClose()
	for _, r := range results {
		if r.Err != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", r.Object, r.Err))
		}
	}
	return err
}
