package loading

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// kept reads what an earlier measurement of the set servers has left: nothing, or the runs so far of the same
// model, in the same parts, on the same machine.
func (b *bench) kept() (*Servers, error) {
	data, err := os.ReadFile(b.Keep)
	if errors.Is(err, fs.ErrNotExist) {
		return &Servers{}, nil
	}
	if err != nil {
		return nil, err
	}
	var r Result
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s is not what an earlier run has kept: %w", b.Keep, err)
	}
	if r.Model != b.result.Model || r.Commit != b.result.Commit || r.Machine != b.result.Machine || r.Part != b.result.Part || r.Servers == nil {
		return nil, fmt.Errorf("%s has starts of %s@%s in parts of %d KiB on %s, not of %s@%s in parts of %d KiB on %s: name another file", b.Keep, r.Model, r.Commit, r.Part>>10, r.Machine,
			b.result.Model, b.result.Commit, b.result.Part>>10, b.result.Machine)
	}
	return r.Servers, r.Servers.sameTokens()
}

// keep writes the result so far, whole or not at all.
func (b *bench) keep() error {
	data, err := json.Marshal(&b.result)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.Keep+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(b.Keep+".new", b.Keep)
}
