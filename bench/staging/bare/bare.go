// Package bare copies a model from a Hub into a bucket with the least that any stager has to do: the
// same ranges as ours, each hashed once, and sent. It is the measure of what the rest costs.
//
// It checks nothing but that the servers do what they were asked, survives no error, keeps no order and
// joins no parts: hashes of ranges, not of files. Its only configuration is how many ranges are in
// flight. It is not a way to stage a model.
package bare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/hf"
)

// Config says what is copied.
type Config struct {
	Hub    string // URL
	Bucket string // URL of the service
	Name   string // of the bucket; objects are named bare/PATH/OFFSET
	Repo   string

	Parts int   // in flight; 0 is 8
	Range int64 // bytes of one read; 0 is manifest.ChunkSize
	Reads int64 // ranges to an object; 0 is 2
}

// Result is what was copied.
type Result struct {
	Bytes   int64
	Ranges  int
	Elapsed time.Duration
}

// part is what becomes one object.
type part struct {
	path   string
	from   string // URL of the file
	off, n int64
}

type copier struct {
	Config
	client *http.Client
	sums   sync.Map // sha256 and crc32c by URL of the object: they have to end up somewhere
}

// Copy copies the files that stage would take.
func Copy(ctx context.Context, c Config) (Result, error) {
	if c.Parts == 0 {
		c.Parts = 8
	}
	if c.Range == 0 {
		c.Range = manifest.ChunkSize
	}
	if c.Reads == 0 {
		c.Reads = 2
	}
	began := time.Now()
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * c.Parts, DisableCompression: true, ReadBufferSize: 64 << 10, WriteBufferSize: 256 << 10}
	defer transport.CloseIdleConnections()
	b := &copier{Config: c, client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}}
	parts, err := b.plan(ctx)
	if err != nil {
		return Result{}, err
	}
	r := Result{}
	queue := make(chan part, len(parts))
	for _, p := range parts {
		r.Bytes += p.n
		r.Ranges += int(manifest.NumChunks(p.n, c.Range))
		queue <- p
	}
	close(queue)
	group, ctx := errgroup.WithContext(ctx)
	for range min(c.Parts, len(parts)) {
		group.Go(func() error { return b.work(ctx, queue) })
	}
	err = group.Wait()
	r.Elapsed = time.Since(began)
	return r, err
}

// plan lists the parts and finds where the bytes of each file are.
func (b *copier) plan(ctx context.Context) ([]part, error) {
	source, err := hf.New(hf.Config{Endpoint: b.Hub})
	if err != nil {
		return nil, err
	}
	defer source.Close()
	at, err := source.Resolve(ctx, b.Repo, "")
	if err != nil {
		return nil, err
	}
	files, err := source.Files(ctx, at.Model)
	if err == nil {
		files, err = stager.Choose(files)
	}
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, f := range files {
		u, err := b.locate(ctx, b.Hub+"/"+b.Repo+"/resolve/"+at.Model.Commit+"/"+f.Path)
		if err != nil {
			return nil, err
		}
		for off := int64(0); off < f.Size; off += b.Reads * b.Range {
			parts = append(parts, part{f.Path, u, off, min(b.Reads*b.Range, f.Size-off)})
		}
	}
	return parts, nil
}

// locate follows redirects.
func (b *copier) locate(ctx context.Context, from string) (string, error) {
	for range 5 {
		r, err := b.do(ctx, http.MethodHead, from, "", nil)
		if err != nil {
			return "", err
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return from, nil
		}
		next, err := r.Location()
		if err != nil {
			return "", fmt.Errorf("%s: status %d: %w", from, r.StatusCode, err)
		}
		if next.RawQuery != "" {
			return next.String(), nil // signed
		}
		from = next.String()
	}
	return "", fmt.Errorf("%s: redirects without end", from)
}

func (b *copier) do(ctx context.Context, method, address, ranged string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, err
	}
	if ranged != "" {
		r.Header.Set("Range", ranged)
	}
	return b.client.Do(r)
}

// work copies parts until there are none, through one buffer.
func (b *copier) work(ctx context.Context, queue <-chan part) error {
	buf := make([]byte, b.Reads*b.Range)
	for p := range queue {
		data := buf[:p.n]
		for off := int64(0); off < p.n; off += b.Range {
			if err := b.read(ctx, p, off, data[off:min(off+b.Range, p.n)]); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("bare/%s/%d", p.path, p.off)
		to := strings.TrimSuffix(b.Bucket, "/") + "/upload/storage/v1/b/" + b.Name + "/o?uploadType=media&name=" + url.QueryEscape(name)
		r, err := b.do(ctx, http.MethodPost, to, "", bytes.NewReader(data))
		if err != nil {
			return err
		}
		if err := finish(r, http.StatusOK); err != nil {
			return err
		}
	}
	return nil
}

// read receives a range and hashes it while it is hot in the processor's cache.
func (b *copier) read(ctx context.Context, p part, off int64, data []byte) error {
	r, err := b.do(ctx, http.MethodGet, p.from, fmt.Sprintf("bytes=%d-%d", p.off+off, p.off+off+int64(len(data))-1), nil)
	if err != nil {
		return err
	}
	const block = 256 << 10
	h, crc := sha256.New(), uint32(0)
	for at := 0; at < len(data) && err == nil; at += block {
		some := data[at:min(at+block, len(data))]
		if _, err = io.ReadFull(r.Body, some); err == nil {
			h.Write(some)
			crc = crc32.Update(crc, manifest.Castagnoli, some)
		}
	}
	b.sums.Store(fmt.Sprint(p.path, p.off+off), [2]any{h.Sum(nil), crc})
	if err != nil {
		r.Body.Close()
		return err
	}
	return finish(r, http.StatusOK, http.StatusPartialContent)
}

// finish reads what is left of an answer, so that its connection serves the next request.
func finish(r *http.Response, want ...int) error {
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return err
	}
	for _, status := range want {
		if r.StatusCode == status {
			return nil
		}
	}
	return fmt.Errorf("%s answers with status %d: %.200q", r.Request.URL.Host, r.StatusCode, text)
}
