package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager/safetensors"
)

// readWhole are the files besides the weights that vLLM opens, in its order. Only config.json has to be there.
var readWhole = []string{
	"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja",
	"processor_config.json", "preprocessor_config.json",
}

const (
	indexName = "model.safetensors.index.json"
	maxIndex  = 64 << 20 // bytes; Gemma 3 27B's has 0.1 MB
)

// start reads what vLLM reads before it knows what model this is: each entry's attributes, each
// shard's header in the directory's order, and the small files.
func (r *reader) start(ctx context.Context) (int64, error) {
	all, err := r.names(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, path := range shards(all) {
		h, err := r.header(path)
		if err != nil {
			return n, err
		}
		n += h.Size
	}
	for _, path := range readWhole {
		if path != "config.json" && !slices.Contains(all, path) {
			continue
		}
		k, err := r.whole(ctx, path, func([]byte) {})
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, ctx.Err()
}

// shards picks what glob("*.safetensors") gives.
func shards(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(path string) bool {
		return strings.Contains(path, "/") || !strings.HasSuffix(path, ".safetensors")
	})
}

func (r *reader) header(path string) (*safetensors.Header, error) {
	f, size, err := r.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := safetensors.Read(f, size)
	if errors.Is(err, safetensors.ErrInvalid) {
		err = fmt.Errorf("%w header: %w", manifest.ErrInvalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// weights copies every tensor of every shard; with keep it leaves the mappings for check.
func (r *reader) weights(ctx context.Context, keep bool) (int64, error) {
	all, err := r.names(ctx)
	if err != nil {
		return 0, err
	}
	files, err := r.indexed(ctx, shards(all))
	if err != nil {
		return 0, err
	}
	slices.SortFunc(files, manifest.NaturalOrder)
	inOrder(r.cfg.Order, files)
	var n int64
	tensors := 0
	for _, path := range files {
		h, err := r.header(path) // the loader's first opening of a shard: it parses the header and maps nothing else
		if err != nil {
			return n, err
		}
		m, err := r.hold(ctx, path)
		if err != nil {
			return n, err
		}
		if keep {
			r.kept[path] = m
		} else {
			defer m.unmap() // all of them stay mapped until the last tensor was copied, as in vLLM
		}
		for e := range extents(r.cfg.Order, h.Tensors) {
			if !r.cfg.Direct { // else it is in this process's memory already
				if err := m.walk(ctx, r.buf, e.off, e.n, func(_ []byte, off int64) { r.step(path, off) }); err != nil {
					return n, err
				}
			}
			n += e.n
		}
		tensors += len(h.Tensors)
	}
	r.result.Shards, r.result.Tensors = len(files), tensors
	return n, nil
}

// hold makes a shard's bytes available: mapped, so that they come when they are touched, or read.
func (r *reader) hold(ctx context.Context, path string) (*mapping, error) {
	if r.cfg.Direct {
		return r.direct(ctx, path)
	}
	return r.mapFile(path)
}

func (r *reader) step(path string, off int64) {
	r.copied(path, off)
	if r.result.First == 0 {
		r.result.First = r.now()
	}
}

// indexed drops the shards that the index does not name, and fails when one that it names is missing.
// Without an index all of them count.
func (r *reader) indexed(ctx context.Context, found []string) ([]string, error) {
	if _, err := os.Stat(r.at(indexName)); err != nil {
		if len(found) == 0 {
			return nil, fmt.Errorf("%w file set: no *.safetensors file", manifest.ErrInvalid)
		}
		return found, nil
	}
	var text []byte
	if _, err := r.whole(ctx, indexName, func(b []byte) { text = append(text, b[:min(len(b), maxIndex+1-len(text))]...) }); err != nil {
		return nil, err
	}
	if len(text) > maxIndex {
		return nil, fmt.Errorf("%w index: %s has more than %d bytes", manifest.ErrInvalid, indexName, maxIndex)
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("%w index: %s: %w", manifest.ErrInvalid, indexName, err)
	}
	named := map[string]bool{}
	for _, path := range index.WeightMap {
		if !filepath.IsLocal(path) || strings.ContainsAny(path, `/\`) {
			return nil, fmt.Errorf("%w index: %s: file name %.100q", manifest.ErrInvalid, indexName, path)
		}
		if !named[path] {
			if _, err := os.Stat(r.at(path)); err != nil {
				return nil, fmt.Errorf("%s names it: %w", indexName, err)
			}
		}
		named[path] = true
	}
	return slices.DeleteFunc(found, func(path string) bool { return !named[path] }), nil
}
