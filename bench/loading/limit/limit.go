// Package limit receives a model from a bucket with the least that a checked load has to do: ranges into
// the mappings of files that were allocated, each summed while it is hot. It is what a machine can do, and
// the measure of what the rest costs.
//
// It survives no error, serves nobody before the end, and keeps nothing for the next time: it is not a
// way to load a model.
package limit

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/manifest"
)

// Config says what is received.
type Config struct {
	Bucket  string // URL of the service and the bucket's name: http://HOST:PORT/NAME
	Model   manifest.Model
	Dir     string // where the files are made
	Streams int    // ranges that are received at once; 0 is 8
}

// hot is how many bytes are summed at a time.
const hot = 256 << 10

type piece struct {
	url  string
	at   manifest.Chunk
	into []byte
}

// Receive receives it all and returns how many bytes that was. An error names the object.
func Receive(ctx context.Context, c Config) (int64, error) {
	if c.Streams <= 0 {
		c.Streams = 8
	}
	t := &http.Transport{MaxIdleConnsPerHost: c.Streams, DisableCompression: true, ReadBufferSize: 64 << 10}
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t}
	m, err := manifestOf(ctx, client, c)
	if err != nil {
		return 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan piece)
	for range c.Streams {
		g.Go(func() error {
			for r := range queue {
				if err := receive(ctx, client, m, r); err != nil {
					return fmt.Errorf("%s: %w", r.url, err)
				}
			}
			return nil
		})
	}
	var maps [][]byte
	g.Go(func() error {
		defer close(queue)
		for i, f := range m.Files {
			b, err := allocate(filepath.Join(c.Dir, filepath.FromSlash(f.Path)), f.Size)
			if err != nil {
				return err
			}
			maps = append(maps, b)
			for chunk := range m.ChunksOf(i) {
				select {
				case queue <- piece{c.object(m.Model.Object(f.Path)), chunk, b[chunk.Offset:][:chunk.Size]}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	err = g.Wait()
	for _, b := range maps {
		if b != nil {
			_ = unix.Munmap(b) // fails only for what is not mapped
		}
	}
	return m.Size(), err
}

// allocate makes a file and maps it; an empty one has no mapping.
func allocate(path string, size int64) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil || size == 0 {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return nil, fmt.Errorf("allocating %d bytes for %s: %w", size, path, err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return b, nil
}

func (c Config) object(key string) string {
	return c.Bucket + "/" + (&url.URL{Path: key}).EscapedPath()
}

func manifestOf(ctx context.Context, client *http.Client, c Config) (*manifest.Manifest, error) {
	from := c.object(c.Model.Key())
	res, err := ask(ctx, client, from, "")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, manifest.MaxSize))
	if err != nil {
		return nil, err
	}
	return manifest.Parse(data)
}

func receive(ctx context.Context, client *http.Client, m *manifest.Manifest, r piece) error {
	res, err := ask(ctx, client, r.url, fmt.Sprintf("bytes=%d-%d", r.at.Offset, r.at.Offset+r.at.Size-1))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var sum uint32
	for b := r.into; len(b) > 0; {
		n, err := res.Body.Read(b[:min(len(b), hot)])
		sum, b = crc32.Update(sum, manifest.Castagnoli, b[:n]), b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1)) // its end, so that the connection serves again
	return m.Check(r.at, sum)
}

func ask(ctx context.Context, client *http.Client, from, ranged string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if ranged != "" {
		req.Header.Set("Range", ranged)
		want = http.StatusPartialContent
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != want {
		res.Body.Close()
		return nil, fmt.Errorf("%s: HTTP %s", from, res.Status)
	}
	return res, nil
}
