package stager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/safetensors"
)

// headerRead is how many bytes of a shard are asked for at first: the header of a 5 GB shard of Gemma 3
// has 50 KB. What is longer costs one more request.
const headerRead = 64 << 10

// inspection looks at weights before they are copied.
type inspection struct {
	*transfer
	choice  Choice
	mu      sync.Mutex
	headers map[string]*safetensors.Header // by path
	big     sync.Mutex                     // held for a header that is larger than one read
}

// inspect parses the header of every safetensors file that is taken, compares it with the file's size,
// and each index with the headers. It returns what is odd, and an error where a server could not load
// the model: in the first seconds, not when the server starts. It costs one small read a file, two where
// the header is long. A model that is staged was looked at then.
func (t *transfer) inspect(ctx context.Context, choice Choice, v survey) ([]string, error) {
	if v.before.Manifest != nil {
		return nil, nil
	}
	in := &inspection{transfer: t, choice: choice, headers: make(map[string]*safetensors.Header)}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(t.Streams)
	for _, f := range choice.Files {
		if !isSafetensors(f.Path) {
			continue
		}
		group.Go(func() error {
			h, err := in.header(groupCtx, f)
			if err != nil {
				return err
			}
			in.mu.Lock()
			defer in.mu.Unlock()
			in.headers[f.Path] = h
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return in.indices(ctx)
}

func (in *inspection) header(ctx context.Context, f RemoteFile) (*safetensors.Header, error) {
	data, err := in.read(ctx, f, 0, min(f.Size, headerRead))
	if err != nil {
		return nil, err
	}
	if len(data) < 8 {
		return nil, malformed(f.Path, fmt.Errorf("%d bytes are too few for its header", len(data)))
	}
	n, err := safetensors.Length([8]byte(data), f.Size)
	if err != nil {
		return nil, malformed(f.Path, err)
	}
	if end := 8 + n; end > int64(len(data)) {
		// One of them at a time: a header may have 100 MB.
		in.big.Lock()
		defer in.big.Unlock()
		rest, err := in.read(ctx, f, int64(len(data)), end-int64(len(data)))
		if err != nil {
			return nil, err
		}
		data = append(data, rest...)
	}
	h, err := safetensors.Parse(data[8:8+n], f.Size)
	if err != nil {
		return nil, malformed(f.Path, err)
	}
	h.Metadata = nil
	for i := range h.Tensors { // only the names and sizes are wanted from here on
		h.Tensors[i].Shape = nil
	}
	return h, nil
}

func malformed(path string, err error) error {
	return Fail(manifest.ErrInvalid, "%s: %v: no server can load it: tell the model's owner, or stage another revision", path, err)
}

// read reads a range of a file into memory.
func (in *inspection) read(ctx context.Context, f RemoteFile, off, n int64) ([]byte, error) {
	if n <= 0 {
		return nil, nil
	}
	r, err := in.Source.Open(ctx, in.model, f, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, n)
	got, err := io.ReadFull(r, data)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%s: the source ended at byte %d of %d: %w", f.Path, off+int64(got), f.Size, io.ErrUnexpectedEOF)
	}
	return data, err
}

// indices reads each index that is taken, in their order.
func (in *inspection) indices(ctx context.Context) ([]string, error) {
	var odd []string
	indexed := make(map[string]bool)
	folders := make(map[string]string) // with an index
	for _, f := range in.choice.Files {
		if !strings.HasSuffix(f.Path, ".safetensors.index.json") {
			continue
		}
		if f.Size > safetensors.MaxIndex {
			return nil, Fail(manifest.ErrInvalid, "%s: %d bytes are too many for an index", f.Path, f.Size)
		}
		data, err := in.read(ctx, f, 0, f.Size)
		if err != nil {
			return nil, err
		}
		s := newSums(f)
		s.Write(data)
		if err := s.check(f); err != nil {
			return nil, err
		}
		x, err := safetensors.ParseIndex(data)
		if err != nil {
			return nil, malformed(f.Path, err)
		}
		some, err := in.compare(f.Path, x, indexed)
		if err != nil {
			return nil, err
		}
		odd = append(odd, some...)
		folders[path.Dir(f.Path)] = f.Path
	}
	for _, p := range slices.Sorted(maps.Keys(in.headers)) {
		if index, ok := folders[path.Dir(p)]; ok && !indexed[p] {
			odd = append(odd, fmt.Sprintf("%s is in no index (%s): servers pass over it", p, index))
		}
	}
	return odd, nil
}

// compare checks an index against the files: what it names must be there. A tensor that it does not name,
// or a total that is wrong, stops no server, and is odd only.
func (in *inspection) compare(index string, x *safetensors.Index, indexed map[string]bool) (odd []string, err error) {
	dir := path.Dir(index)
	tensors := make(map[string]map[string]bool) // by file, those that the index has
	for _, tensor := range slices.Sorted(maps.Keys(x.Files)) {
		p := path.Join(dir, x.Files[tensor])
		h := in.headers[p]
		if h == nil {
			return nil, in.missing(index, p, tensor)
		}
		if _, ok := slices.BinarySearchFunc(h.Tensors, tensor, func(t safetensors.Tensor, name string) int { return strings.Compare(t.Name, name) }); !ok {
			return nil, malformed(index, fmt.Errorf("tensor %.100q should be in %s, which does not have it", tensor, p))
		}
		if tensors[p] == nil {
			tensors[p] = make(map[string]bool)
		}
		tensors[p][tensor] = true
	}
	total := int64(0)
	for _, p := range slices.Sorted(maps.Keys(tensors)) {
		indexed[p] = true
		extra, first := 0, ""
		for _, t := range in.headers[p].Tensors {
			total += t.Size
			if !tensors[p][t.Name] {
				if extra++; extra == 1 {
					first = t.Name
				}
			}
		}
		if extra > 0 {
			odd = append(odd, fmt.Sprintf("%s has %d tensors that %s does not name, the first of them %.100q", p, extra, index, first))
		}
	}
	if x.TotalSize >= 0 && x.TotalSize != total {
		odd = append(odd, fmt.Sprintf("%s says total_size %d, and its tensors have %d bytes", index, x.TotalSize, total))
	}
	return odd, nil
}

// missing says where a file is that an index names, if anywhere.
func (in *inspection) missing(index, p, tensor string) error {
	for _, l := range in.choice.Left {
		if l.Path == p {
			return Fail(ErrSelection, "%s names %s (tensor %.100q), which is left out (%s): include it, or exclude the index", index, p, tensor, l.Why)
		}
	}
	if slices.ContainsFunc(in.choice.Files, func(f RemoteFile) bool { return f.Path == p }) {
		return malformed(index, fmt.Errorf("it names %s (tensor %.100q), which is no *.safetensors file", p, tensor))
	}
	return malformed(index, fmt.Errorf("it names %s (tensor %.100q), which the model does not have", p, tensor))
}
