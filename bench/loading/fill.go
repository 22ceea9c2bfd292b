package loading

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/bench/child"
	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/bench/server"
	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/safetensors"
)

// fill starts the bucket and stages the model into it. Where rclone is to compare MD5, the files are there a
// second time, for an object that was composed has none.
func (b *bench) fill(ctx context.Context) (err error) {
	b.bucket, err = server.Start(ctx, b.Self, b.Environ, 1, "bucket", "--dir", b.memory.Path("bucket"), "--create", bucketName, "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.bucket.End()
		}
	}()
	b.url = b.bucket.Lines[0]
	h, err := server.Start(ctx, b.Self, b.Environ, 2, slices.Concat([]string{"hub", "--listen", "127.0.0.1:0"}, b.Hub)...)
	if err != nil {
		return err
	}
	defer h.End()
	b.say("staging %s", b.Repo.Name())
	home, err := folder(b.disk.Path("stage"))
	if err != nil {
		return err
	}
	cmd := child.Command(ctx, b.Self, "stage", b.Repo.Name(), "--json", "--chunk-size", fmt.Sprint(b.Part))
	cmd.Env = append(b.environ(home, b.url), "HF_ENDPOINT="+h.Lines[0])
	var out, said child.Tail
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return child.Failed("headstart stage", err, &said)
	}
	if err := b.readManifest(ctx); err != nil {
		return err
	}
	if b.Peers.Rclone != "" && slices.Contains(b.Sets, Cold) {
		if err := b.upload(ctx); err != nil {
			return fmt.Errorf("uploading files in one piece: %w", err)
		}
	}
	b.tensors, err = tensorsOf(b.Repo, b.paths)
	return err
}

func (b *bench) model() manifest.Model {
	return manifest.Model{Repo: b.Repo.Name(), Commit: b.Repo.Commit()}
}

func (b *bench) readManifest(ctx context.Context) error {
	res, err := b.ask(ctx, http.MethodGet, b.url+"/"+bucketName+"/"+b.model().Key(), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, manifest.MaxSize))
	if err != nil {
		return err
	}
	if b.manifest, err = manifest.Parse(data); err != nil {
		return err
	}
	for _, f := range b.manifest.Files {
		b.paths = append(b.paths, f.Path)
	}
	r := &b.result
	r.Model, r.Commit, r.Files, r.Bytes = b.manifest.Model.Repo, b.manifest.Model.Commit, len(b.paths), b.manifest.Size()
	return nil
}

// upload puts the files into the bucket once more, each in one piece.
func (b *bench) upload(ctx context.Context) error {
	for _, path := range b.paths {
		r, err := b.Repo.Open(path)
		if err != nil {
			return err
		}
		body := io.NewSectionReader(r, 0, b.manifest.File(path).Size)
		to := b.url + "/upload/storage/v1/b/" + bucketName + "/o?uploadType=media&name=" + url.QueryEscape(plain+"/"+path)
		res, err := b.ask(ctx, http.MethodPost, to, body)
		if err == nil {
			err = res.Body.Close()
		}
		if c, ok := r.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ask sends a request and returns the answer, which is 200.
func (b *bench) ask(ctx context.Context, method, to string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		res.Body.Close()
		return nil, fmt.Errorf("%s: HTTP %s: %s", to, res.Status, said)
	}
	return res, nil
}

// beside is how many bytes a run takes beside the model's: memory of processes, and of the server's sockets.
const beside = 64 << 20

// touch touches the memory that a run will take, for so many copies of the model.
func (b *bench) touch(ctx context.Context, copies int64) error {
	held, err := memory.Touch(ctx, b.medium, copies*b.manifest.Size()*9/8+beside)
	if err != nil {
		return err
	}
	return held.Release()
}

// tensors are what a streamer that knows no files delivers.
type tensors struct {
	bytes int64
	crc   uint32 // over all tensors in the order of their names
}

// streamed is what streamer.py says.
type streamed struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_s"`
	Bytes   int64   `json:"bytes"`
	CRC32C  uint32  `json:"crc32c"`
}

func (t tensors) check(got streamed) error {
	if got.Bytes != t.bytes || got.CRC32C != t.crc {
		return fmt.Errorf("%w tensors: %d bytes with crc32c %08x, the files have %d with %08x", manifest.ErrInvalid, got.Bytes, got.CRC32C, t.bytes, t.crc)
	}
	return nil
}

// tensorsOf sums the tensors of a repository's shards.
func tensorsOf(repo hub.Repo, paths []string) (sum tensors, err error) {
	type part struct {
		name string
		*io.SectionReader
	}
	var parts []part
	for _, path := range paths {
		if !weights(path) {
			continue
		}
		r, err := repo.Open(path)
		if err != nil {
			return sum, err
		}
		if c, ok := r.(io.Closer); ok {
			defer c.Close() // it was read only
		}
		i := slices.IndexFunc(repo.Files(), func(f hub.File) bool { return f.Path == path })
		h, err := safetensors.Read(r, repo.Files()[i].Size)
		if err != nil {
			return sum, fmt.Errorf("%s: %w", path, err)
		}
		for _, t := range h.Tensors {
			parts = append(parts, part{t.Name, io.NewSectionReader(r, t.Offset, t.Size)})
		}
	}
	slices.SortFunc(parts, func(x, y part) int { return strings.Compare(x.name, y.name) })
	all := crc32.New(manifest.Castagnoli)
	for _, p := range parts {
		n, err := io.CopyBuffer(struct{ io.Writer }{all}, struct{ io.Reader }{p}, make([]byte, 1<<20))
		if err != nil {
			return sum, err
		}
		sum.bytes += n
	}
	sum.crc = all.Sum32()
	return sum, nil
}

func weights(path string) bool { return strings.HasSuffix(path, ".safetensors") }

// decode reads the last line that a command said into result.
func decode(out *child.Tail, result any) error {
	if result == nil {
		return nil
	}
	return json.Unmarshal(out.Line(), result)
}
