package staging

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// stored is an object in the bucket.
type stored struct {
	name string
	size int64 // bytes
	crc  uint32
}

// landed fails unless the bucket holds every file in full, with the crc32c that the ways before left: a
// way that loses or garbles bytes is not fast, it is wrong.
func (b *bench) landed(ctx context.Context, w way, s *site) error {
	objects, err := list(ctx, s.bucketURL)
	if err != nil {
		return fmt.Errorf("looking at what arrived: %w", err)
	}
	sums := map[string]uint32{}
	for _, f := range b.files {
		size, crc, err := joined(objects, w.object(b, f.Path))
		if err != nil {
			return err
		}
		if size != f.Size {
			return fmt.Errorf("%w: the bucket holds %d bytes of %s, the Hub's file has %d", manifest.ErrInvalid, size, f.Path, f.Size)
		}
		if want, ok := b.sums[f.Path]; ok && crc != want {
			return fmt.Errorf("%w: the bucket holds %s with crc32c %08x, another way left %08x", manifest.ErrInvalid, f.Path, crc, want)
		}
		sums[f.Path] = crc
	}
	b.sums = sums
	return nil
}

// joined returns size and crc32c of an object, or of its parts NAME/OFFSET.
func joined(objects []stored, name string) (size int64, crc uint32, err error) {
	var parts []stored
	offset := map[string]int64{}
	for _, o := range objects {
		if o.name == name {
			return o.size, o.crc, nil
		}
		if digits, ok := strings.CutPrefix(o.name, name+"/"); ok {
			if offset[o.name], err = strconv.ParseInt(digits, 10, 64); err != nil {
				return 0, 0, fmt.Errorf("%s in the bucket is no part of a file", o.name)
			}
			parts = append(parts, o)
		}
	}
	slices.SortFunc(parts, func(x, y stored) int { return cmp.Compare(offset[x.name], offset[y.name]) })
	for _, p := range parts {
		if offset[p.name] != size {
			return 0, 0, fmt.Errorf("%s in the bucket does not begin where the part before ends, at %d", p.name, size)
		}
		size, crc = size+p.size, manifest.CombineCRC32C(crc, p.crc, p.size)
	}
	return size, crc, nil
}

// list lists the bucket.
func list(ctx context.Context, service string) (all []stored, err error) {
	for token := ""; ; {
		var page struct {
			Items []struct {
				Name   string `json:"name"`
				Size   int64  `json:"size,string"`
				CRC32C []byte `json:"crc32c"`
			} `json:"items"`
			Next string `json:"nextPageToken"`
		}
		if err := get(ctx, service+"/storage/v1/b/"+bucketName+"/o?pageToken="+url.QueryEscape(token), &page); err != nil {
			return nil, err
		}
		for _, o := range page.Items {
			if len(o.CRC32C) != 4 {
				return nil, fmt.Errorf("the crc32c of %s is %q", o.Name, base64.StdEncoding.EncodeToString(o.CRC32C))
			}
			all = append(all, stored{o.Name, o.Size, binary.BigEndian.Uint32(o.CRC32C)})
		}
		if token = page.Next; token == "" {
			return all, nil
		}
	}
}

func get(ctx context.Context, from string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: HTTP %s", from, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(into)
}
