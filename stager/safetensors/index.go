package safetensors

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
)

// MaxIndex is the largest index in bytes that ParseIndex reads: a million tensors.
const MaxIndex = 128 << 20

// Index says which file holds which tensor: *.safetensors.index.json.
type Index struct {
	Files     map[string]string // tensor → file, relative to the index's folder
	TotalSize int64             // of the tensors in bytes; -1 where the index does not say
}

// ParseIndex reads an index strictly: no tensor twice, no file outside of the index's folder.
func ParseIndex(data []byte) (*Index, error) {
	x := &Index{Files: make(map[string]string), TotalSize: -1}
	if len(data) > MaxIndex {
		return nil, fmt.Errorf("%w: an index of %d bytes, more than %d", ErrInvalid, len(data), MaxIndex)
	}
	if err := x.parse(data); err != nil {
		return nil, fmt.Errorf("%w: the index: %w", ErrInvalid, err)
	}
	return x, nil
}

func (x *Index) parse(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	found := false
	err := object(d, func(key string) error {
		switch key {
		case "metadata":
			return x.metadata(d)
		case "weight_map":
			if found {
				return errors.New("weight_map stands there twice")
			}
			found = true
			return x.weights(d)
		}
		return d.Decode(new(json.RawMessage))
	})
	switch {
	case err != nil:
		return err
	case !found || len(x.Files) == 0:
		return errors.New("it maps no tensor")
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more after its object")
	}
	return nil
}

func (x *Index) weights(d *json.Decoder) error {
	return object(d, func(tensor string) error {
		var file *string
		if err := d.Decode(&file); err != nil || file == nil {
			return fmt.Errorf("tensor %q is in no file", clip(tensor))
		}
		if _, twice := x.Files[tensor]; twice {
			return fmt.Errorf("tensor %q stands there twice", clip(tensor))
		}
		if !fs.ValidPath(*file) || *file == "." {
			return fmt.Errorf("tensor %q is in %q, which is no file of the model", clip(tensor), clip(*file))
		}
		x.Files[tensor] = *file
		return nil
	})
}

// metadata takes total_size, which some writers give as 1.5e10; what else stands there is anybody's.
func (x *Index) metadata(d *json.Decoder) error {
	var m struct {
		TotalSize json.RawMessage `json:"total_size"`
	}
	if err := d.Decode(&m); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if n, err := strconv.ParseFloat(string(m.TotalSize), 64); err == nil && n >= 0 && n < 1<<53 && n == float64(int64(n)) {
		x.TotalSize = int64(n)
	}
	return nil
}
